"""Check answers that are words: exact text, text that must occur, JSON of a schema, instructions of IFEval."""

from __future__ import annotations

import json
import re

from hf_judge.checking.checkers import RegexChecker, last_block

YES_OR_NO = r"(?i)\b(yes|no)\b"


class ExactChecker:
    """Reads a whole response, its blanks made single."""

    name = "exact"

    def __call__(self, response: str, task: dict) -> str | None:
        return " ".join(response.split()) or None

    def reference(self, written: object, task: dict) -> str | None:
        """Read the right answer by the same rule."""
        return self(str(written), task)


class ContainsChecker:
    """Says whether a response holds the right answer as whole words, in any case."""

    name = "contains"

    def __call__(self, response: str, task: dict) -> bool:
        wanted = self.reference(task.get("answer"), task)
        if wanted is None:
            raise ValueError(f"the checker contains needs a text under 'answer', got {task.get('answer')!r:.60}")
        found = " ".join(response.casefold().split())
        return re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", found) is not None

    def reference(self, written: object, task: dict) -> str | None:
        """Read the text that must occur."""
        return None if written is None else " ".join(str(written).casefold().split()) or None


class YesNoChecker(RegexChecker):
    """Reads the last "yes" or "no"."""

    def __init__(self):
        super().__init__(YES_OR_NO, ignore_case=True)
        self.name = "yes_no"


class JSONSchemaChecker:
    """Says whether the JSON of a response is of the task's schema: the last fenced block, or the whole response.

    Raises:
        ImportError: `jsonschema` is not installed.
    """

    name = "json_schema"

    def __init__(self):
        try:
            import jsonschema
        except ImportError:
            raise ImportError("the checker json_schema needs jsonschema: pip install jsonschema") from None
        self._library = jsonschema

    def __call__(self, response: str, task: dict) -> bool:
        schema = task.get("schema")
        if not isinstance(schema, dict):
            raise ValueError(f"a task for json_schema needs the object 'schema', got the keys {sorted(task)}")
        try:
            self._library.validate(json.loads(last_block(response, "json")), schema)
        except (json.JSONDecodeError, RecursionError, self._library.ValidationError):
            return False
        except self._library.SchemaError as error:
            raise ValueError(f"the task's 'schema' is no JSON schema: {error.message:.200}") from None
        return True


class InstructionChecker:
    """Says whether a response follows every instruction of an IFEval prompt (2311.07911, strict).

    lm-evaluation-harness holds the instructions.

    Raises:
        ImportError: lm-evaluation-harness, or what its ifeval needs, is not installed.
    """

    name = "ifeval"

    def __init__(self):
        try:
            from lm_eval.tasks.ifeval import utils
        except ImportError as error:
            raise ImportError(
                f"the checker ifeval needs lm-evaluation-harness: pip install 'lm-eval[ifeval]' ({error})"
            ) from None
        self._utils = utils

    def __call__(self, response: str, task: dict) -> bool:
        asked = self._utils.InputExample(**task["answer"])
        return bool(self._utils.test_instruction_following_strict(asked, response).follow_all_instructions)
