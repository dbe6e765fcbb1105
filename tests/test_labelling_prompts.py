"""The prompt of a row: what reaches the chat template, and what is refused by name."""

import json

import pytest
from test_labelling_responses import TOKENIZER, as_dataset, byte_tokenizer

from hf_judge.labelling.prompts import Prompt, RefusedPrompt, encode_prompt, prompt_of
from hf_judge.labelling.responses import (
    LabelledResponse,
    from_dataset,
    read_jsonl,
    row_from_dict,
    write_jsonl,
)
from hf_judge.labelling.tokens import label_rows

CHAT = [{"role": "user", "content": "How many?"}]
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
ALL = byte_tokenizer()
ALL.chat_template = (
    "{% if messages[0]['role'] == 'moderator' %}{{ raise_exception('no moderators here') }}{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if documents %}{{ documents | length }}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}quick{% endif %}{{ reasoning_effort }}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "arguments"),
    [
        ({}, {}),
        ({"tools": TOOLS}, {"tools": TOOLS}),
        ({"enable_thinking": False}, {"enable_thinking": False}),
        ({"enable_thinking": True}, {"enable_thinking": True}),
        ({"reasoning_effort": "low", "documents": [{"title": "t", "text": "x"}]}, None),
        ({"chat_template_kwargs": {"enable_thinking": False, "tools": TOOLS}}, None),
        ({"chat_template_kwargs": {"enable_thinking": False}, "enable_thinking": False}, {"enable_thinking": False}),
        ({"chat_template": "{{ messages[0]['content'] }}!"}, None),
        ({"chat_template_kwargs": None, "tools": None, "enable_thinking": None}, {}),
        ({"tools": []}, {}),
        ({"answer": "5", "task_id": 3, "question": "?"}, {}),  # the checker's own
    ],
)
def test_settings_reach_the_template(row, arguments):
    if arguments is None:
        arguments = {k: v for k, v in row.items() if k != "chat_template_kwargs"} | row.get("chat_template_kwargs", {})
    right = ALL.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False, **arguments)
    for key in ("prompt", "messages"):
        text, ids = encode_prompt(ALL, prompt_of({key: CHAT, **row}))
        assert text == right
        assert ids == ALL(right, add_special_tokens=False).input_ids


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
def test_a_system_message_beside_the_chat(key):
    said = prompt_of({"prompt": CHAT, key: "Be brief."})
    assert said.content == [{"role": "system", "content": "Be brief."}, *CHAT]
    for row, message in (
        ({"prompt": "text"}, f"'{key}' is for a chat, and the prompt is text"),
        ({"prompt": said.content}, f"'{key}' and the first message are two system messages"),
        ({"prompt": CHAT, key: 7}, f"{key} must be text, got a number"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            prompt_of({key: "Be brief."} | row)


def test_the_model_goes_on_with_a_message():
    begun = [*CHAT, {"role": "assistant", "content": "It is"}]
    prompt = prompt_of({"messages": begun, "continue_final_message": True})
    assert encode_prompt(ALL, prompt)[0].endswith("<|assistant|>It is")
    with pytest.raises(ValueError, match=r"'messages' ends with an answer.*continue_final_message"):
        prompt_of({"messages": begun})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, "expected a JSON object with 'prompt'"),
        ({"prompt": None}, "prompt must be text or a list of chat messages, got null"),
        ({"prompt": 7}, "got a number"),
        ({"prompt": True}, "got true or false"),
        ({"prompt": {"role": "user", "content": "a"}}, "got an object"),
        ({"prompt": []}, "got a list of none"),
        ({"prompt": ["a"]}, "a chat message has 'role' and 'content', got 'a'"),
        ({"prompt": [{"role": "user"}]}, "a chat message has 'role' and 'content'"),
        ({"prompt": [{"role": 1, "content": "a"}]}, "the role of a chat message must be text"),
        ({"prompt": [{"role": "user", "content": None}]}, "the content of a chat message must be text"),
        ({"prompt": [{"role": "user", "content": 5}]}, "the content of a chat message must be text"),
        ({"prompt": "a", "messages": CHAT}, "'prompt' and 'messages' are two prompts"),
        ({"messages": "a"}, "messages must be a list of chat messages, got text"),
        ({"prompt": "a", "tools": TOOLS}, "'tools' is for a chat template, and the prompt is text"),
        ({"prompt": "a", "enable_thinking": False}, "'enable_thinking' is for a chat template"),
        ({"prompt": "a", "chat_template_kwargs": {"x": 1}}, "'x' is for a chat template"),
        ({"prompt": CHAT, "chat_template_kwargs": [1]}, "chat_template_kwargs must be an object, got a list"),
        ({"prompt": CHAT, "chat_template_kwargs": {"tokenize": True}}, "sets 'tokenize', which is not for a row"),
        ({"prompt": CHAT, "chat_template_kwargs": {"add_generation_prompt": False}}, "sets 'add_generation_prompt'"),
        ({"prompt": CHAT, "enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, "two values"),
        ({"prompt": CHAT, "tools": "f"}, "tools must be a list of objects, got text"),
        ({"prompt": CHAT, "tools": ["f"]}, "tools must be a list of objects"),
        ({"prompt": CHAT, "enable_thinking": "no"}, "enable_thinking must be true or false, got text"),
        ({"prompt": CHAT, "chat_template": 5}, "chat_template must be text"),
    ],
)  # fmt: skip
def test_rows_that_are_no_prompt(row, message):
    with pytest.raises((TypeError, ValueError), match=message):
        prompt_of(row)


@pytest.mark.parametrize(
    ("tokenizer", "prompt", "message"),
    [
        (ALL, [{"role": "moderator", "content": "a"}], "the chat template refuses the prompt: no moderators here"),
        (
            TOKENIZER,
            Prompt(CHAT, {"tools": TOOLS}),
            "sets 'tools', and this tokenizer's chat template does not read it",
        ),
        (TOKENIZER, Prompt(CHAT, {"enable_thinking": True}), "sets 'enable_thinking', and this tokenizer's"),
        (TOKENIZER, Prompt(CHAT, {"chat_template": "{{ messages.x.y }}"}), "the chat template refuses the prompt"),
        (TOKENIZER, Prompt(CHAT, {"chat_template": "{{ 1 / 0 }}"}), "refuses the prompt: division by zero"),
        (TOKENIZER, Prompt(CHAT, {"chat_template": "{% if %}"}), "the chat template refuses the prompt"),
        (TOKENIZER, "", "comes to no tokens"),
        (TOKENIZER, "half \ud83d", "does not take the prompt's text"),
        (TOKENIZER, 7, "prompt must be text"),
    ],
)
def test_prompts_that_a_tokenizer_refuses(tokenizer, prompt, message):
    with pytest.raises(RefusedPrompt, match=message):
        encode_prompt(tokenizer, prompt)


def test_a_model_without_a_chat_template():
    bare = byte_tokenizer()
    bare.chat_template = None
    with pytest.raises(RefusedPrompt, match="chat messages need a chat template"):
        encode_prompt(bare, CHAT)
    assert encode_prompt(bare, "Tom")[1] == bare("Tom").input_ids


def test_parts_and_calls_of_tools_are_messages():
    calls = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
    chat = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, calls, {"role": "tool", "content": "4"}]
    assert prompt_of({"prompt": chat}).content == chat
    assert Prompt(chat).text == "Hi\n\n4"
    assert Prompt(chat).last == "4"


class TestLabelledResponses:
    """Rows for training are encoded as the prompt that they were mined from."""

    ROW = LabelledResponse(CHAT, "It is 5.", ((6, 7),), chat_template_kwargs={"tools": TOOLS, "enable_thinking": False})

    def test_files_keep_the_settings(self, tmp_path):
        plain = LabelledResponse(CHAT, "5")
        write_jsonl([self.ROW, plain], tmp_path / "rows.jsonl")
        assert list(read_jsonl(tmp_path / "rows.jsonl")) == [self.ROW, plain]
        assert "chat_template_kwargs" not in plain.to_dict()

    def test_datasets_keep_the_settings(self):
        other = LabelledResponse(CHAT, "5", chat_template_kwargs={"reasoning_effort": "low"})
        rows = [self.ROW, LabelledResponse(CHAT, "5"), other]
        assert list(from_dataset(as_dataset(rows))) == rows

    def test_keys_of_their_own_are_read_too(self):
        values = json.loads(json.dumps(self.ROW.to_dict()))
        values |= values.pop("chat_template_kwargs") | {"messages": values.pop("prompt")}
        assert row_from_dict(values) == self.ROW
        with pytest.raises(ValueError, match="'tools' is for a chat template"):
            row_from_dict({"prompt": "a", "response": "b", "tools": TOOLS})

    def test_labels_are_of_that_prompt(self):
        (tokens,), _ = label_rows([self.ROW], ALL)
        right = ALL.apply_chat_template(
            CHAT, add_generation_prompt=True, tools=TOOLS, enable_thinking=False, return_dict=True
        )["input_ids"]
        assert tokens.input_ids[: tokens.n_prompt] == right
