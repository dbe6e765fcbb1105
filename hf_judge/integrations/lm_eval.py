"""Add the model ``hf-judge`` to lm-evaluation-harness: its ``hf`` model, with judged generation.

    python -m hf_judge.integrations.lm_eval --model hf-judge \\
        --model_args pretrained=TARGET,assistant=DRAFT,judge=HEAD --tasks gsm8k

This is lm_eval's own command line, with all of its flags: the module registers the model and calls it. The command
``lm_eval`` itself cannot find the model: up to 0.4.13 it loads no plugins, neither entry points nor modules of the user
(``--include_path`` reads tasks, after the model is made). In Python, importing this module is enough. Loglikelihoods
are the target's own; only generation is judged.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

try:
    import lm_eval.api.metrics  # noqa: F401 - the means that `register_metric` names
    from lm_eval.api.registry import register_metric, register_model
    from lm_eval.models.huggingface import HFLM
except ImportError:
    raise ImportError("this needs lm-evaluation-harness: pip install 'hf-judge[lm-eval]'") from None

from hf_judge.checking.correctness import is_right, make_checker
from hf_judge.head.compatibility import check_pair, draft_tokenizer_of
from hf_judge.labelling.greedy import ANSWER_ALONE
from hf_judge.modeling.classes import judged
from hf_judge.modeling.keywords import constant_drafts
from hf_judge.upstream.generation import tokenizer_arguments
from hf_judge.verify.decide import StrictVerifier


@register_metric(metric="hf_judge_right", higher_is_better=True, aggregation="mean")
def right(references: list, predictions: list[str], checker: str = "numeric", pattern: str | None = None) -> float:
    """Return 1.0 for a right response, read as in `hf-judge evaluate`: the metric `hf_judge_right` of a `metric_list`.

    Args:
        references: the one right answer.
        predictions: the one response.
        checker, pattern: arguments of [`hf_judge.checking.correctness.make_checker`].
    """
    return float(is_right(make_checker(checker, pattern=pattern), predictions[0], {"answer": references[0]}))


@register_model("hf-judge")
class JudgeLM(HFLM):
    """Generates as `HFLM` does, but drafts with an assistant and verifies with a judge.

    Args:
        pretrained: the target, as in `HFLM`.
        assistant: the draft: a Hub id, a directory or a model.
        judge: a value that `generate(judge=)` takes; None: strict verification.
        judge_threshold: threshold between 0 (every token is accepted) and 1 (none is rescued); default: the head's own.
        num_assistant_tokens: drafted tokens per round.
        **kwargs: further arguments of `HFLM`.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        assistant: str | PreTrainedModel,
        judge=None,
        judge_threshold: float | None = None,
        num_assistant_tokens: int = 16,
        **kwargs,
    ):
        super().__init__(pretrained=pretrained, **kwargs)
        self._model = judged(self._model)
        assistant_tokenizer = self.tokenizer
        if isinstance(assistant, str):
            assistant_tokenizer = draft_tokenizer_of(assistant, self.tokenizer)
            check_pair(self.tokenizer, assistant_tokenizer)
            assistant = AutoModelForCausalLM.from_pretrained(assistant, dtype=self._model.dtype)
            assistant = assistant.to(self._model.device)
        threshold = None if judge_threshold is None else float(judge_threshold)
        judge = StrictVerifier() if judge is None else judge
        self.verifier = self._model.resolve_judge(judge, threshold)
        tokenizers = tokenizer_arguments(self._model, assistant, self.tokenizer, assistant_tokenizer)
        self._judged_kwargs = constant_drafts(assistant.eval(), self.verifier, int(num_assistant_tokens), **tokenizers)

    def _model_generate(self, context, max_length: int, stop: list[str], **generation_kwargs) -> torch.Tensor:
        # One prompt at a time: the harness's stopping criteria count the prompts that they were made for.
        mask = generation_kwargs.pop("attention_mask", None)
        mask = torch.ones_like(context) if mask is None else mask
        answers = []
        for ids, kept in zip(context, mask.bool(), strict=True):
            ids = ids[kept].unsqueeze(0)
            output = super()._model_generate(
                ids,
                max_length=max_length - context.shape[1] + ids.shape[1],
                stop=stop,
                attention_mask=torch.ones_like(ids),
                **self._judged_kwargs,
                **ANSWER_ALONE | generation_kwargs,
            )
            answers.append(output[0, ids.shape[1] :])
        padding = self.tokenizer.pad_token_id
        answers = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=padding)
        return torch.cat([context, answers], dim=1)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())
