"""Heads that read numbers of the verification beside the state: one function for training and for serving."""

from __future__ import annotations

import json
import math

import pytest
import torch
from feature_stores import make_store, separable
from safetensors.torch import load_file

from hf_judge import JudgeCandidateVerifier, JudgeConfig, JudgeHead, judged
from hf_judge.cli import commands as cli
from hf_judge.head.distributions import DRAFT_FEATURES, EXTRA_FEATURES, extra_features
from hf_judge.labelling.responses import LabelledResponse
from hf_judge.rules.by_name import Setting, make_verifier
from hf_judge.tiny import load_pair
from hf_judge.training.calibration import head_scores
from hf_judge.training.extraction import FeatureStore, extract_features
from hf_judge.training.fit import JudgeTrainingArguments, train_judge
from hf_judge.training.metrics import roc_auc
from hf_judge.verify.judge import head_features
from hf_judge.verify.round import Candidates, TargetOutputs

EXTRA = ("entropy", "margin")
GREEDY = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0, "do_sample": False}


@pytest.fixture(scope="module")
def pair():
    return load_pair(4)


def make_head(names, *, hidden_size=256, threshold=0.0, weight=None):
    head = JudgeHead(JudgeConfig(hidden_size=hidden_size, extra_features=names, threshold=threshold))
    if weight is not None:
        with torch.no_grad():
            head.weight[0, hidden_size:] = torch.tensor(weight)
    return head


class TestFormulas:
    TARGET = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]).log() + 3.0  # logits are known up to a constant
    DRAFT = torch.tensor([[0.1, 0.8, 0.1], [0.25, 0.25, 0.5]]).log()
    IDS = torch.tensor([1, 2])

    def test_by_hand(self):
        found = extra_features(EXTRA_FEATURES, self.TARGET, self.IDS, self.DRAFT)
        entropy = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
        kl = 0.7 * math.log(7) + 0.2 * math.log(0.25)
        expected = [
            [math.log(0.2), entropy, math.log(3.5), math.log(0.8), kl],
            [math.log(0.5), 1.5 * math.log(2), 0.0, math.log(0.5), 0.0],
        ]
        torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)

    def test_the_order_is_that_of_the_names(self):
        whole = extra_features(EXTRA_FEATURES, self.TARGET, self.IDS, self.DRAFT)
        found = extra_features(("kl", "entropy"), self.TARGET, self.IDS, self.DRAFT)
        assert torch.equal(found, whole[:, [4, 1]])

    def test_half_precision_is_computed_in_float32(self):
        found = extra_features(("entropy",), self.TARGET.bfloat16(), self.IDS)
        assert found.dtype == torch.float32
        assert torch.equal(found, extra_features(("entropy",), self.TARGET.bfloat16().float(), self.IDS))

    def test_the_draft_is_asked_for_only_where_needed(self):
        names = [name for name in EXTRA_FEATURES if name not in DRAFT_FEATURES]
        assert extra_features(names, self.TARGET, self.IDS).isfinite().all()
        for name in DRAFT_FEATURES:
            with pytest.raises(ValueError, match=f"reads {name}.*draft with assistant_model="):
                extra_features((name,), self.TARGET, self.IDS)
        with pytest.raises(ValueError, match="3 tokens of the target and 4 of the draft"):
            extra_features(("kl",), self.TARGET, self.IDS, torch.zeros(2, 4))

    def test_infinite_values_accept_nothing(self):
        ruled_out = self.DRAFT.clone()
        ruled_out[0, 0] = -math.inf  # KL is infinite there
        features = extra_features(("kl",), self.TARGET, self.IDS, ruled_out)
        assert features.isnan().tolist() == [[True], [False]]
        candidates = Candidates(self.IDS[None], raw_logits=ruled_out[None])
        rows = TargetOutputs(torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), torch.zeros(1, 3, 4))
        rows = rows._replace(logits=torch.cat([self.TARGET, self.TARGET[:1]])[None])
        verifier = JudgeCandidateVerifier(make_head(["kl"], hidden_size=4, weight=[1.0]))
        assert verifier.judged(head_features(verifier.head, candidates, rows)).tolist() == [[False, True]]


def served(pair, problem_ids, *, engine, **kwargs):
    """Features of the drafted tokens by position in the answer, as a judge that accepts everything read them."""
    head, seen = make_head(EXTRA_FEATURES), {}

    class Recorder(JudgeCandidateVerifier):
        def verify(self, candidates, rows):
            features, first = head_features(self.head, candidates, rows), int(candidates.n_generated[0])
            seen.update({first + j: features[0, j] for j in range(features.shape[1])})
            return super().verify(candidates, rows)

    output = pair.target.generate(
        problem_ids,
        attention_mask=torch.ones_like(problem_ids),
        assistant_model=pair.draft,
        judge=Recorder(head),
        judge_engine=engine,
        max_new_tokens=40,
        num_assistant_tokens=7,
        **GREEDY | kwargs,
    )
    return output[0, problem_ids.shape[1] :].tolist(), seen


class TestTrainingAndServing:
    QUESTION = [{"role": "user", "content": "Ana has 17 coins. Ben gives Ana 5 coins. How many coins does Ana have?"}]

    @pytest.mark.parametrize(
        ("engine", "options"),
        [
            ("ragged", {}),
            ("upstream", {}),
            # what changes the scores must not change the features: they are made of raw logits
            ("ragged", {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.5}),
            ("upstream", {"repetition_penalty": 1.3, "do_sample": True, "temperature": 0.5}),
        ],
        ids=["ragged", "upstream", "ragged-processed", "upstream-processed"],
    )
    def test_the_values_are_equal(self, pair, tmp_path, engine, options):
        ids = pair.tokenizer.apply_chat_template(
            self.QUESTION, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        torch.manual_seed(0)
        answer, seen = served(pair, ids, engine=engine, **options)
        stop = pair.tokenizer.eos_token_id
        answer = answer[: answer.index(stop)] if stop in answer else answer
        row = LabelledResponse(self.QUESTION, pair.tokenizer.decode(answer), response_ids=tuple(answer))
        store, _ = extract_features(
            pair.target, pair.tokenizer, [row], tmp_path, draft_model=pair.draft, extra=EXTRA_FEATURES
        )
        positions = store.column("position").tolist()
        ((_, features),) = store.chunks(chunk_tokens=1000, extra=EXTRA_FEATURES)
        stored = dict(zip(positions, features, strict=True))
        both = sorted(set(stored) & set(seen))
        assert len(both) > 15
        torch.testing.assert_close(
            torch.stack([seen[i] for i in both]), torch.stack([stored[i] for i in both]), atol=2e-4, rtol=1e-4
        )

    def test_sources_without_logits_are_named(self, pair):
        ids = torch.arange(5, 25).repeat(2)[None]
        options = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 8, "do_sample": False}
        with pytest.raises(ValueError, match="reads kl.*prompt lookup"):
            pair.target.generate(ids, judge=make_head(["kl"]), **options)
        pair.target.generate(ids, judge=make_head(["entropy"]), **options)

    def test_the_users_draft_is_left_alone(self, pair):
        ids = torch.arange(5, 25)[None]
        before = dict(pair.draft.__dict__), pair.draft.generation_config.to_dict()
        served(pair, ids, engine="upstream")
        assert (dict(pair.draft.__dict__), pair.draft.generation_config.to_dict()) == before
        assert "generate" not in pair.draft.__dict__

    @pytest.mark.parametrize("engine", ["ragged", "upstream"])
    def test_the_head_decides_by_them(self, pair, engine):
        """A head that looks at the margin alone, against the rule written out."""
        ids = torch.arange(5, 25)[None]
        head, limit = make_head(["margin"], weight=[-1.0], threshold=0.5), 4.0
        with torch.no_grad():
            head.bias.fill_(limit)  # sigmoid(limit - margin) > 0.5
        judge, seen = JudgeCandidateVerifier(head), []

        class Watch:
            stats, hidden_state = judge.stats, judge.hidden_state

            def verify(self, candidates, rows):
                verdict = judge.verify(candidates, rows)
                top = rows.logits[0, :-1].amax(-1)
                margin = top - rows.logits[0, :-1].gather(-1, candidates.ids[0].unsqueeze(1)).squeeze(1)
                ok = ((margin < limit) & (candidates.stop[0] <= (margin == 0))).long()
                seen.append((int(verdict.n_accepted), int(ok.cumprod(0).sum())))
                return verdict

        pair.target.generate(
            ids, assistant_model=pair.draft, judge=Watch(), judge_engine=engine, max_new_tokens=60,
            num_assistant_tokens=8, **GREEDY,
        )  # fmt: skip
        assert all(a == b for a, b in seen)
        assert {a for a, _ in seen} > {0} or len({a for a, _ in seen}) > 2

    def test_autojudge_reads_them_too(self, pair):
        ids = torch.arange(5, 25)[None]
        verifier = make_verifier(Setting("autojudge", 0.9), {"autojudge": make_head(EXTRA_FEATURES)})
        for engine in ("ragged", "upstream"):
            pair.target.generate(
                ids, assistant_model=pair.draft, judge=verifier, judge_engine=engine, max_new_tokens=8, **GREEDY
            )
        assert verifier.stats.rescued > 0


class TestPipeline:
    def store(self, directory, *, noise=1.0):
        """Features that say nothing, and two extra ones of which the second tells mistakes."""
        useful, labels, row, prompts = separable(noise=noise)
        generator = torch.Generator().manual_seed(1)
        useless = torch.randn(len(labels), 5, generator=generator)
        extra = {"entropy": torch.randn(len(labels), generator=generator), "margin": useful[:, 0] * 50 + 7}
        return make_store(directory, useless, labels, row, prompts, extra=extra), labels

    def test_a_head_learns_from_them(self, tmp_path):
        store, labels = self.store(tmp_path / "f")
        plain = train_judge(store, JudgeTrainingArguments(str(tmp_path / "plain")))
        assert plain.head.weight.shape == (1, 5)
        assert plain.metrics["decided"]["auc"] < 0.7
        both = train_judge(store, JudgeTrainingArguments(str(tmp_path / "both"), extra_features=("margin",)))
        assert both.head.weight.shape == (1, 6)
        assert both.metrics["decided"]["auc"] > 0.95
        loaded = JudgeHead.from_pretrained(tmp_path / "both")
        assert loaded.config.extra_features == ["margin"]
        assert loaded.config.hidden_size == 5
        # the scaler is folded in: raw features give the same separation, whatever their scale
        assert roc_auc(head_scores(loaded, store), labels) > 0.95

    def test_streaming_gives_the_same_head(self, tmp_path):
        store, _ = self.store(tmp_path / "f")
        heads = [
            train_judge(
                store,
                JudgeTrainingArguments(
                    str(tmp_path / str(gb)), extra_features=EXTRA[:2], max_memory_gb=gb, optimizer="lbfgs"
                ),
            ).head
            for gb in (2.0, 0.0)
        ]
        torch.testing.assert_close(heads[0].weight, heads[1].weight, rtol=1e-3, atol=1e-5)

    def test_what_is_not_stored_is_named(self, tmp_path):
        store, _ = self.store(tmp_path / "f")
        with pytest.raises(ValueError, match="kl not among the stored features .there are: entropy, margin."):
            train_judge(store, JudgeTrainingArguments(str(tmp_path / "h"), extra_features=("margin", "kl")))
        with pytest.raises(ValueError, match="extra_features may name .*; got 'logit'"):
            JudgeTrainingArguments(str(tmp_path / "h"), extra_features=("logit",))
        with pytest.raises(ValueError, match="extract features for this head"):
            head_scores(make_head(["kl"], hidden_size=5), store)

    def test_features_of_the_draft_need_a_draft(self, pair, tmp_path):
        with pytest.raises(ValueError, match="kl come from the draft: pass draft_model"):
            extract_features(pair.target, pair.tokenizer, [], tmp_path, extra=("entropy", "kl"))

    def test_on_the_command_line(self, pair, tmp_path, capsys):
        """features, train and info, on the embedded models."""
        home = tmp_path / "pair"
        pair.target.save_pretrained(home / "target")
        pair.tokenizer.save_pretrained(home / "target")
        rows = [
            {"prompt": f"Ana has {i} coins.", "response": f" Ana has {i} coins.", "mistakes": []} for i in range(40)
        ]
        for row in rows[::2]:
            row["mistakes"] = [[9, 9 + len(row["response"]) - 16]]
        (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
        command = ["features", "--target", str(home / "target"), "--data", str(tmp_path / "data.jsonl")]
        assert cli.main([*command, "--output", str(tmp_path / "f"), "--extra-features", "entropy", "margin"]) == 0
        assert "256 + entropy + margin" in capsys.readouterr().out
        assert FeatureStore(tmp_path / "f").extra_features == ["entropy", "margin"]
        train = ["train", "--features", str(tmp_path / "f"), "--output-dir", str(tmp_path / "h")]
        train += ["--validation-fraction", "0.4", "--calibration-fraction", "0", "--extra-features", "margin"]
        assert cli.main(train) == 0
        assert load_file(tmp_path / "h" / "adapter_model.safetensors").popitem()[1].shape[-1] in (1, 257)
        assert cli.main(["info", str(tmp_path / "h")]) == 0
        assert "256 'post_norm' features + margin" in capsys.readouterr().out


class TestFiles:
    def test_the_width_is_checked(self, tmp_path):
        head = make_head(["entropy", "kl"], hidden_size=8)
        head.save_pretrained(tmp_path)
        assert JudgeHead.from_pretrained(tmp_path).weight.shape == (1, 10)
        values = json.loads((tmp_path / "adapter_config.json").read_text())
        for names in ([], ["entropy"], ["entropy", "kl", "margin"]):
            (tmp_path / "adapter_config.json").write_text(json.dumps(values | {"extra_features": names}))
            with pytest.raises(ValueError, match=r"has shape \[1, 10\]"):
                JudgeHead.from_pretrained(tmp_path)

    def test_heads_say_what_they_expect(self):
        with pytest.raises(ValueError, match="hidden size 8 and after it entropy, kl, got states of size 8"):
            make_head(["entropy", "kl"], hidden_size=8)(torch.zeros(3, 8))

    def test_peft_hangs_it_on_a_target(self, pair, tmp_path):
        peft = pytest.importorskip("peft")
        make_head(["margin"], weight=[-0.5]).save_pretrained(tmp_path)
        model = peft.PeftModel.from_pretrained(load_pair(4).target, tmp_path)
        ids = torch.arange(5, 25)[None]
        out = judged(model).generate(ids, assistant_model=pair.draft, max_new_tokens=8, **GREEDY)
        by_head = pair.target.generate(ids, assistant_model=pair.draft, judge=str(tmp_path), max_new_tokens=8, **GREEDY)
        assert torch.equal(out, by_head)
