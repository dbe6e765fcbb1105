"""An acceptance rule of your own: keep a drafted token that is among the target's three best."""

from hf_judge import JudgeStats
from hf_judge.tiny import load_pair
from hf_judge.verify import decide


class AmongTheBest:
    hidden_state = None  # this rule reads no hidden state

    def __init__(self, n: int):
        self.n, self.stats = n, JudgeStats()

    def verify(self, candidates, rows):
        best = rows.scores[:, :-1].topk(self.n, dim=-1).indices  # row i predicts drafted token i
        accepted = (best == candidates.ids.unsqueeze(-1)).any(dim=-1)
        return decide(candidates, rows, accepted)


pair = load_pair()
inputs = pair.tokenizer("Ana has 17 coins.", return_tensors="pt")
rule = AmongTheBest(3)
pair.target.generate(
    **inputs, assistant_model=pair.draft, judge=rule, num_assistant_tokens=8, max_new_tokens=48, do_sample=False
)
print(rule.stats)
