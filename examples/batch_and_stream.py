"""A batch of prompts at once, and one prompt streamed."""

from transformers import TextStreamer

from hf_judge.tiny import load_pair

pair = load_pair()
settings = {"assistant_model": pair.draft, "judge": pair.judge, "num_assistant_tokens": 32, "max_new_tokens": 200}
questions = [
    "Ivy has 36 apples. Ivy gets 4 more. Ivy loses 3. Ivy gets 3 more. Ivy finds 8 more. How many apples are left?",
    "Max has 5 pens. Max gives away 2. Max gets 6 more. Max loses 7. Max sells 1. How many pens are left?",
]
chats = [[{"role": "user", "content": question}] for question in questions]
options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
batch = pair.tokenizer.apply_chat_template(chats, padding=True, padding_side="left", **options)
for answer in pair.target.generate(**batch, **settings):
    print(pair.tokenizer.decode(answer, skip_special_tokens=True))

one = pair.tokenizer.apply_chat_template(chats[0], **options)
pair.target.generate(**one, **settings, streamer=TextStreamer(pair.tokenizer, skip_prompt=True))
