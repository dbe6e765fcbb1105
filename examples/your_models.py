"""Judged decoding on your own models: Hub ids or directories of a target, a draft and a judge head."""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_judge import AutoJudgeModelForCausalLM

target_name, draft_name, judge = sys.argv[1:4]
tokenizer = AutoTokenizer.from_pretrained(target_name)
target = AutoJudgeModelForCausalLM.from_pretrained(target_name, dtype="auto", device_map="auto")
draft = AutoModelForCausalLM.from_pretrained(draft_name, dtype="auto", device_map="auto")
question = "Ivy has 36 pens. Ivy gets 4 more. Ivy loses 3. Ivy gets 3 more. Ivy finds 8 more. How many pens are left?"
messages = [{"role": "user", "content": question}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = target.generate(
    **inputs.to(target.device),
    assistant_model=draft,
    judge=judge,
    num_assistant_tokens=32,
    max_new_tokens=256,
)
print(tokenizer.decode(out[0], skip_special_tokens=True))
