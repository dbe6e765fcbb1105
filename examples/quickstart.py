"""Judged decoding on the bundled pair: runs anywhere, offline, in seconds."""

from hf_judge.tiny import load_pair

pair = load_pair()
question = "Ivy has 36 pens. Ivy gets 4 more. Ivy loses 3. Ivy gets 3 more. Ivy finds 8 more. How many pens are left?"
messages = [{"role": "user", "content": question}]
inputs = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = pair.target.generate(
    **inputs,
    assistant_model=pair.draft,
    judge=pair.judge,
    num_assistant_tokens=32,
    max_new_tokens=200,
    return_dict_in_generate=True,
)
print(pair.tokenizer.decode(out.sequences[0], skip_special_tokens=True))
print(out.judge_stats)
