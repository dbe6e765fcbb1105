"""Compares rules on the same held-out problems: accuracy and target forwards."""

from hf_judge.evaluation.evaluate import Decoding, Pair, evaluate
from hf_judge.evaluation.figures import figures
from hf_judge.head import JudgeHead
from hf_judge.rules.by_name import parse_settings
from hf_judge.tasks.load import load_task
from hf_judge.tiny import load_pair

tiny = load_pair(4)  # the trained depth: the same answers, faster
pair = Pair(tiny.target, tiny.draft, tiny.tokenizer, {"judge": JudgeHead.from_pretrained(tiny.judge)})
settings = parse_settings(["strict", "judge=0.7", "typical=0.3"], pair.heads)
answers = evaluate(pair, load_task("world", 4), settings, decoding=Decoding(num_assistant_tokens=16))
for row in figures(answers):
    print(f"{row['rule']:12} {row['accuracy']:.0%} right, {row['forwards_per_answer']:.1f} target forwards per answer")
