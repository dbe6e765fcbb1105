"""Read the prompt of a line of a user's file, and encode it into ids.

A prompt is text, or chat messages with the arguments of the chat template that stand beside them in the line. All of
them change what the model reads: each reaches the template, or the line is refused with the argument's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import jinja2
from transformers import PreTrainedTokenizerBase

from hf_judge.files.jsonl import type_name

# keys of a line that are arguments of the chat template, as the templates of well-known models name them
TEMPLATE_KEYS = (
    "tools",
    "documents",
    "enable_thinking",
    "thinking",
    "thinking_budget",
    "reasoning_effort",
    "builtin_tools",
    "custom_tools",
    "xml_tools",
    "python_tools",
    "tools_in_user_message",
    "date_string",
    "model_identity",
    "chat_template",
    "continue_final_message",
)
SYSTEM_KEYS = ("system", "system_prompt", "system_message")  # text that goes before the chat as a system message
# arguments of apply_chat_template about the form of its result, which the encoder sets
_ENCODERS_OWN = (
    "conversation", "tokenize", "add_generation_prompt", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens", "messages",
)  # fmt: skip
_NOT_READ_BY_NAME = ("chat_template", "continue_final_message")  # arguments, but no variables of a template
# what a template, a small program, may raise about messages that it does not expect
_TEMPLATE_ERRORS = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError,
)  # fmt: skip


class RefusedPrompt(ValueError):
    """Says why this model's tokenizer cannot encode a prompt; others of the same file may be fine."""


@dataclass(frozen=True)
class Prompt:
    """Holds the prompt of a line.

    Args:
        content (`str` or `list[dict]`): the text, or chat messages with `role` and `content`.
        arguments (`dict`): arguments of the chat template, by name; empty for text.

    Raises:
        TypeError: a message or an argument has the wrong type.
        ValueError: text has arguments of a chat template, or an argument is the encoder's.
    """

    content: str | list[dict]
    arguments: dict = field(default_factory=dict)

    def __post_init__(self):
        _check_content(self.content)
        object.__setattr__(self, "arguments", _checked_arguments(self.arguments))
        if isinstance(self.content, str) and self.arguments:
            raise ValueError(
                f"{_named(self.arguments)} is for a chat template, and the prompt is text, which goes past it: give "
                "chat messages as the prompt, or take the key out"
            )

    @property
    def text(self) -> str:
        """Text for people to read: the prompt, or what all its messages say."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(_message_text(message) for message in self.content)

    @property
    def last(self) -> str:
        """Text for people to read: the prompt, or what its last message says."""
        return self.content if isinstance(self.content, str) else _message_text(self.content[-1])


def prompt_of(row: dict) -> Prompt:
    """Read the prompt of a line of a file.

    Args:
        row: object with `prompt` (text or chat messages) or `messages`; beside it optionally `chat_template_kwargs` or
            any of [`TEMPLATE_KEYS`] and `SYSTEM_KEYS`. Other keys do not belong to the prompt.

    Raises:
        TypeError, ValueError: there is no prompt, or two, or one of the wrong type.
    """
    prompt, messages = row.get("prompt"), row.get("messages")
    if messages is not None:
        if prompt is not None:
            raise ValueError("'prompt' and 'messages' are two prompts in one row: take one of them out")
        if not isinstance(messages, list):
            raise TypeError(f"messages must be a list of chat messages, got {type_name(messages)}: {messages!r:.60}")
        ends = messages and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
        if ends and not arguments_of(row).get("continue_final_message"):
            raise ValueError(
                "'messages' ends with an answer (role 'assistant'): give the messages before it, or set "
                "'continue_final_message' to let the model go on with it"
            )
        prompt = messages
    elif "prompt" not in row:
        raise ValueError(f"expected a JSON object with 'prompt', got the keys {sorted(row)!s:.120}")
    return Prompt(_with_system(prompt, row), arguments_of(row))


def arguments_of(row: dict) -> dict:
    """Read the arguments of the chat template in a line, from `chat_template_kwargs` and from keys of their own.

    Raises:
        TypeError: `chat_template_kwargs` is no object.
        ValueError: an argument is given twice.
    """
    given = row.get("chat_template_kwargs")
    if given is not None and not isinstance(given, dict):
        raise TypeError(f"chat_template_kwargs must be an object, got {type_name(given)}: {given!r:.60}")
    own = {key: row[key] for key in TEMPLATE_KEYS if row.get(key) is not None}
    twice = sorted(key for key in own.keys() & (given or {}).keys() if own[key] != given[key])
    if twice:
        raise ValueError(f"'{twice[0]}' stands in the row and in its chat_template_kwargs with two values: drop one")
    return (given or {}) | own


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict] | Prompt) -> tuple[str, list[int]]:
    """Return a prompt's text and its ids, exactly as they go into `generate`.

    Args:
        tokenizer: the target's tokenizer.
        prompt: text, or chat messages for the tokenizer's chat template.

    Raises:
        RefusedPrompt: the chat template or the tokenizer refuses it; the message says why.
    """
    try:
        prompt = prompt if isinstance(prompt, Prompt) else Prompt(prompt)
    except (TypeError, ValueError) as error:
        raise RefusedPrompt(str(error)) from None
    if isinstance(prompt.content, str):
        text, special = prompt.content, True
    else:
        text, special = _rendered(tokenizer, prompt), False  # the template writes the special tokens itself
    try:
        ids = tokenizer(text, add_special_tokens=special).input_ids
    except (TypeError, UnicodeError) as error:  # half a character, as Python reads it from a broken command line
        raise RefusedPrompt(f"the tokenizer does not take the prompt's text: {error}") from None
    if not ids:
        raise RefusedPrompt("the prompt comes to no tokens: a model needs at least one to go on from")
    return text, ids


def _rendered(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    arguments = {"add_generation_prompt": not prompt.arguments.get("continue_final_message"), **prompt.arguments}
    try:
        template = tokenizer.get_chat_template(prompt.arguments.get("chat_template"), prompt.arguments.get("tools"))
    except ValueError as error:
        raise RefusedPrompt(f"chat messages need a chat template: {str(error).splitlines()[0]:.200}") from None
    for name in prompt.arguments:
        if name not in _NOT_READ_BY_NAME and not re.search(rf"\b{re.escape(name)}\b", template):
            raise RefusedPrompt(
                f"the row sets '{name}', and this tokenizer's chat template does not read it: take the key out, or "
                "use a model whose template does"
            )
    try:
        return tokenizer.apply_chat_template(prompt.content, tokenize=False, **arguments)
    except _TEMPLATE_ERRORS as error:
        raise RefusedPrompt(
            f"the chat template refuses the prompt: {str(error) or type(error).__name__:.200}"
        ) from None


def _with_system(prompt: object, row: dict) -> object:
    """Return the chat with the system message that stands beside it in front."""
    given = [key for key in SYSTEM_KEYS if row.get(key) is not None]
    if not given:
        return prompt
    key = given[0]
    if len(given) > 1:
        raise ValueError(f"'{given[0]}' and '{given[1]}' are two system messages in one row: take one of them out")
    if not isinstance(row[key], str):
        raise TypeError(f"{key} must be text, got {type_name(row[key])}: {row[key]!r:.60}")
    if not isinstance(prompt, list):
        raise ValueError(
            f"'{key}' is for a chat, and the prompt is {type_name(prompt)}: give chat messages as the prompt, or write "
            "the system message into its text"
        )
    if prompt and isinstance(prompt[0], dict) and prompt[0].get("role") == "system":
        raise ValueError(f"'{key}' and the first message are two system messages in one row: take one of them out")
    return [{"role": "system", "content": row[key]}, *prompt]


def _check_content(content: object) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise TypeError(f"prompt must be text or a list of chat messages, got {type_name(content)}: {content!r:.60}")
    if not content:
        raise TypeError("prompt must be text or a list of chat messages, got a list of none")
    for message in content:
        calls = isinstance(message, dict) and message.get("tool_calls")
        if not isinstance(message, dict) or "role" not in message or not ("content" in message or calls):
            raise TypeError(f"a chat message has 'role' and 'content', got {message!r:.60}")
        if not isinstance(message["role"], str):
            raise TypeError(f"the role of a chat message must be text, got {message['role']!r:.60}")
        said = message.get("content")
        if not isinstance(said, str | list) and not (said is None and calls):
            raise TypeError(f"the content of a chat message must be text or a list of parts, got {said!r:.60}")


def _checked_arguments(arguments: object) -> dict:
    if not isinstance(arguments, dict):
        raise TypeError(f"chat_template_kwargs must be an object, got {type_name(arguments)}: {arguments!r:.60}")
    for name, value in arguments.items():
        if name in _ENCODERS_OWN:
            raise ValueError(f"chat_template_kwargs sets '{name}', which is not for a row to set: take it out")
        lists, flags = ("tools", "documents"), ("enable_thinking", "continue_final_message")
        if (
            name in lists
            and value is not None
            and not (isinstance(value, list) and all(isinstance(item, dict) for item in value))
        ):
            raise TypeError(f"{name} must be a list of objects, got {type_name(value)}: {value!r:.60}")
        if name in flags and value is not None and not isinstance(value, bool):
            raise TypeError(f"{name} must be true or false, got {type_name(value)}: {value!r:.60}")
        if name == "chat_template" and value is not None and not isinstance(value, str):
            raise TypeError(f"chat_template must be text, got {type_name(value)}: {value!r:.60}")
    # an empty list of tools is no tools, and null is nothing
    return {name: value for name, value in arguments.items() if value is not None and value != []}


def _named(arguments: dict) -> str:
    return ", ".join(f"'{name}'" for name in arguments)


def _message_text(message: dict) -> str:
    said = message.get("content")
    if isinstance(said, list):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in said)
    return str(said or "")
