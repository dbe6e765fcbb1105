"""An acceptance rule of your own: keep a drafted token that is among the target's three best."""

from hf_judge import JudgeStats
from hf_judge.tiny import load_pair
from hf_judge.verify import decide


class AmongTheBest:
    hidden_state = None  # this rule reads no hidden state

    def __init__(self, n: int):
        self.n, self.stats = n, JudgeStats()

    def verify(self, candidates, outputs):
        best = outputs.scores[:, :-1].topk(self.n, dim=-1).indices  # position i predicts drafted token i, from 0
        accepted = (best == candidates.ids.unsqueeze(-1)).any(dim=-1)
        return decide(candidates, outputs, accepted)


pair = load_pair()
question = "Ivy has 36 pens. Ivy gets 4 more. Ivy loses 3. Ivy gets 3 more. Ivy finds 8 more. How many pens are left?"
messages = [{"role": "user", "content": question}]
inputs = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
rule = AmongTheBest(3)
pair.target.generate(**inputs, assistant_model=pair.draft, judge=rule, num_assistant_tokens=8, max_new_tokens=200)
print(rule.stats)
