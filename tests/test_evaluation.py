"""Comparing rules: figures by hand, runs that resume, given text, tasks, settings, and the commands."""

from __future__ import annotations

import importlib
import json
import math
import sys

import measured_pair
import pytest
import torch

from hf_judge import StrictVerifier, VerdictCode
from hf_judge.checking.statistics import mcnemar_p, ratio_interval, wilson_interval
from hf_judge.cli import commands as cli
from hf_judge.cli import evaluate as cli_evaluate
from hf_judge.evaluation.evaluate import Answer, Decoding, Pair, evaluate
from hf_judge.evaluation.figures import best_within, figures, pareto, warnings_of
from hf_judge.evaluation.given_text import pieces, read_text, runs, score_curves, score_texts, token_details, walk
from hf_judge.rules import RandomVerifier
from hf_judge.rules.by_name import RULES, Setting, parse_settings
from hf_judge.tasks.load import load_task

DECODING = Decoding(num_assistant_tokens=5, max_new_tokens=14)
M, R, C, B = (int(code) for code in list(VerdictCode)[:4])


@pytest.fixture(scope="module")
def pair() -> Pair:
    return measured_pair.pair()


class TestSignificance:
    def test_wilson_by_hand(self):
        low, high = wilson_interval(8, 10)
        assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)  # Newcombe 1998 gives the formula's values
        assert wilson_interval(0, 20)[0] == 0.0
        assert wilson_interval(20, 20) == (pytest.approx(0.8389, abs=1e-4), pytest.approx(1.0))
        assert wilson_interval(0, 0) == (0.0, 1.0)

    def test_mcnemar_by_hand(self):
        assert mcnemar_p(0, 0) == 1.0
        assert mcnemar_p(0, 5) == pytest.approx(2 / 32)
        assert mcnemar_p(1, 5) == mcnemar_p(5, 1) == pytest.approx(2 * 7 / 64)
        assert mcnemar_p(4, 4) == 1.0

    def test_ratio_interval_holds_the_ratio(self):
        mine = [1.0 + 0.1 * (i % 7) for i in range(60)]
        low, high = ratio_interval([2 * x for x in mine], mine)
        assert low == pytest.approx(2) == high
        low, high = ratio_interval([2 * x + (i % 3) for i, x in enumerate(mine)], mine)
        assert low < sum(2 * x + (i % 3) for i, x in enumerate(mine)) / sum(mine) < high


class TestSettings:
    def test_all_rules_by_default(self, pair):
        settings = parse_settings([], pair.heads)
        assert settings[0] == Setting("plain")
        assert {s.rule for s in settings} == {
            "plain", "assisted", "strict", "block", "judge", "kl", "typical", "top-k", "relaxed", "ensemble",
            "thresholds", "fly", "vllm-fly", "mars", "fsd", "cactus", "mentored", "cascade-chow", "cascade-diff",
            "cascade-opt", "cascade-token", "random",
        }  # fmt: skip
        assert parse_settings(["all"], pair.heads) == settings
        assert len(parse_settings([], pair.heads, quick=True)) < len(settings)
        assert "autojudge" in {s.rule for s in parse_settings([], pair.heads | {"autojudge": measured_pair.head()})}

    def test_chosen_values(self, pair):
        settings = parse_settings(["judge=0.5,0.9", "plain", "judge=0.5", "strict"], pair.heads)
        assert [s.name for s in settings] == ["plain", "judge=0.5", "judge=0.9", "strict"]

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("jugde", "no rule 'jugde': there are plain, assisted, strict, block, judge, autojudge, kl"),
            ("judge=1.5", "judge=1.5: threshold must be between 0 and 1"),
            ("top-k=1.5", "top-k=1.5: k must be a whole number"),
            ("top-k=0", "top-k=0: k must be at least 1"),
            ("autojudge=-0.1", "autojudge=-0.1: threshold must be between 0 and 1"),
            ("kl=-1", "kl=-1: threshold must be at least 0"),
            ("typical=1.1", "typical=1.1: epsilon must be between 0 and 1"),
            ("relaxed=2", "relaxed=2: delta must be between 0 and 1"),
            ("ensemble=nan", "ensemble=nan: weight must be between 0 and 1"),
            ("thresholds=-1", "thresholds=-1: single must be between 0 and 1"),
            ("fly=1.5", "fly=1.5: threshold must be between 0 and 1"),
            ("random=2", "random=2: rate must be between 0 and 1"),
            ("kl=a", "expected numbers after '='"),
            ("strict=2", "no number to set"),
            ("plain=1", "no number to set"),
            ("autojudge", "needs its head: pass --autojudge"),
            ("judge:other", "needs its head: pass --judge"),
            ("top-k:x", "no rule"),
        ],
    )
    def test_bad_settings(self, pair, text, match):
        heads = pair.heads | ({"autojudge": measured_pair.head()} if "=-0.1" in text else {})
        with pytest.raises(ValueError, match=match):
            parse_settings([text], heads)

    def test_sweeps_are_in_order_and_in_range(self, pair):
        heads = pair.heads | {"autojudge": measured_pair.head(), "diversed": measured_pair.head()}
        for name, spec in RULES.items():
            assert list(spec.sweep) in (sorted(spec.sweep), sorted(spec.sweep, reverse=True))
            for value in (*spec.sweep, *spec.quick):
                parse_settings([f"{name}={value}"], heads)


class TestTasks:
    def test_world(self):
        task = load_task("world", 3, seed=5)
        assert [e.name for e in task.examples] == ["0", "1", "2"]
        assert task.examples[0].first_mistake("nonsense") is not None
        assert not task.examples[0].is_right("nonsense")

    @pytest.mark.parametrize(
        ("checker", "answer", "right", "wrong"),
        [
            ("numeric", "so 1,200 #### 18", "It is 18.0", "It is 17"),
            (r"numeric:answer is (\d+)", "the answer is 3", "answer is 3. Not 4", "3"),
            ("regex:(yes|no)", "yes", "no, yes", "yes, no"),
            ("choice", "B", "the answer is (B)", "the answer is C"),
        ],
    )
    def test_file_with_a_checker(self, tmp_path, checker, answer, right, wrong):
        path = tmp_path / "work.jsonl"
        path.write_text(json.dumps({"prompt": "Q?", "answer": answer}) + "\n\n")
        (example,) = load_task(str(path), 0, checker=checker).examples
        assert example.is_right(right)
        assert not example.is_right(wrong)

    def test_unit_tests_need_the_opt_in(self, tmp_path):
        path = tmp_path / "work.jsonl"
        path.write_text(json.dumps({"prompt": "Write f.", "tests": "assert f() == 1"}))
        with pytest.raises(ValueError, match="allow_code_execution"):
            load_task(str(path), 0, checker="unit_tests")
        (example,) = load_task(str(path), 0, checker="unit_tests", allow_code_execution=True).examples
        assert example.is_right("def f(): return 1")
        assert not example.is_right("def f(): return 2")

    @pytest.mark.parametrize(
        ("content", "checker", "match"),
        [
            (None, None, "no task .*: known are world, gsm8k, .*, or the path of a JSONL file"),
            ("{}", "numeric", "line 1: expected a JSON object with 'prompt' and 'answer'"),
            ("{", "numeric", "line 1"),
            ("", "numeric", "holds no prompts"),
            ('{"prompt": "a", "answer": "b"}', "numeric", "finds no answer"),
            ('{"prompt": "a", "answer": "b"}', "nummeric", "one of numeric, numeric:PATTERN"),
            ('{"prompt": "a", "answer": "b"}', None, "needs a checker"),
        ],
    )
    def test_bad_tasks(self, tmp_path, content, checker, match):
        path = tmp_path / "work.jsonl"
        if content is not None:
            path.write_text(content)
        with pytest.raises(ValueError, match=match):
            load_task(str(path), 0, checker=checker)


class TestFigures:
    @staticmethod
    def answers() -> dict:
        def answer(tokens, right, seconds, forwards, codes=None):
            return Answer(tokens, codes, right, seconds, forwards, 12 if codes else 0, [seconds, 0, 0, 0])

        plain = {"a": answer([1, 2, 3, 4], True, 2.0, 4), "b": answer([5, 6], False, 1.0, 2)}
        mine = {
            "a": answer([1, 2, 7, 4, 4, 4], False, 1.0, 2, [M, M, R, C, M, B]),
            "b": answer([5, 6], True, 0.5, 1, [M, B]),
        }
        return {Setting("plain"): plain, Setting("judge", 0.5): mine}

    def test_by_hand(self):
        plain, mine = figures(self.answers())
        assert plain["speedup"] == 1 == plain["tokens_per_forward"]
        assert plain["first_divergence"] is None
        assert (mine["rule"], mine["number"], mine["threshold"]) == ("judge", "threshold", 0.5)
        assert (mine["accuracy"], mine["gained"], mine["lost"], mine["mcnemar_p"]) == (0.5, 1, 1, 1.0)
        assert mine["answer_tokens"] == 4
        assert mine["forwards_per_answer"] == 1.5
        assert mine["tokens_per_forward"] == pytest.approx(8 / 3)
        assert mine["accepted_per_forward"] == pytest.approx(5 / 3)
        assert (mine["rescued_per_answer"], mine["corrected_per_answer"], mine["drafted_per_answer"]) == (0.5, 0.5, 12)
        assert mine["speedup"] == 2.0  # wall time per answer ...
        assert mine["tokens_per_second_ratio"] == pytest.approx((8 / 1.5) / (6 / 3))  # ... not tokens per second
        assert (mine["first_divergence"], mine["identical_to_plain"]) == (2, 0.5)
        assert mine["accepted_lengths"] == {1: 2, 3: 1}
        json.dumps([plain, mine], allow_nan=False)

    def test_warnings(self):
        answers = self.answers()
        assert any("points wide" in text for text in warnings_of(answers))
        for answer in answers[Setting("plain")].values():
            answer.right = False
        assert "no plain answer passes the checker" in warnings_of(answers)[0]

    def test_front_and_best(self):
        def row(rule, accuracy, speedup):
            return {"rule": rule, "accuracy": accuracy, "speedup": speedup}

        rows = [row("plain", 0.9, 1), row("a", 0.9, 2), row("a", 0.5, 3), row("b", 0.895, 1.5), row("b", 0.8, 2.5)]
        assert [(r["rule"], r["speedup"]) for r in pareto(rows)] == [("a", 2), ("b", 2.5), ("a", 3)]
        assert {rule: r["speedup"] for rule, r in best_within(rows, 1.0).items()} == {"plain": 1, "a": 2, "b": 1.5}


SETTINGS = [Setting("plain"), Setting("assisted"), Setting("strict"), Setting("judge", 0.5), Setting("random", 0.5)]


@pytest.fixture(scope="module")
def answers(pair):
    return evaluate(pair, measured_pair.task(2), SETTINGS, decoding=DECODING)


class TestEvaluate:
    def test_lossless_ways_give_the_plain_answer(self, answers):
        plain = answers[Setting("plain")]
        for rule in ("assisted", "strict"):
            for name, answer in answers[Setting(rule)].items():
                assert answer.tokens == plain[name].tokens
                assert answer.forwards < len(answer.tokens) == plain[name].forwards

    def test_lossy_ways_are_recorded(self, answers):
        for setting in SETTINGS[3:]:
            for answer in answers[setting].values():
                assert len(answer.codes) == len(answer.tokens)
                assert sum(answer.accepted_lengths) == sum(code in (M, R) for code in answer.codes)
                assert len(answer.seconds_by_phase) == 4
                assert 0 < sum(answer.seconds_by_phase) <= answer.seconds
        assert any(R in a.codes for a in answers[Setting("random", 0.5)].values())

    def test_it_resumes_and_refuses_other_work(self, pair, tmp_path):
        task, settings, counted = measured_pair.task(3), [Setting("plain"), Setting("strict")], []

        class Killed(Exception):
            pass

        def stop_after_two(n):
            counted.append(n)
            if sum(counted) == 2:
                raise Killed

        with pytest.raises(Killed):
            evaluate(pair, task, settings, decoding=DECODING, journal_dir=tmp_path, on_answer=stop_after_two)
        (file,) = tmp_path.glob("*.jsonl")
        with open(file, "ab") as handle:
            handle.write(b'{"key": "plain | 2", "val')  # the line that was being written
        counted.clear()
        answers = evaluate(pair, task, settings, decoding=DECODING, journal_dir=tmp_path, on_answer=counted.append)
        assert counted[0] == 2
        assert sum(counted) == 6
        assert all(len(found) == 3 for found in answers.values())
        again = evaluate(pair, task, settings, decoding=DECODING, journal_dir=tmp_path)
        assert again == answers
        with pytest.raises(ValueError, match="other settings .*decoding"):
            evaluate(pair, task, settings, decoding=Decoding(4, 14), journal_dir=tmp_path)

    def test_answers_of_another_head_are_not_taken_for_its_own(self, pair, tmp_path):
        settings, counted = [Setting("plain"), Setting("judge", 0.5)], []
        arguments = {"decoding": DECODING, "journal_dir": tmp_path, "on_answer": counted.append}
        evaluate(pair, measured_pair.task(1), settings, **arguments)
        other = Pair(pair.target, pair.draft, pair.tokenizer, {"judge": measured_pair.head(2.0)}, name=pair.name)
        counted.clear()
        evaluate(other, measured_pair.task(1), settings, **arguments)
        assert counted == [1, 1]  # plain was there, the judged answer came anew

    def test_a_batch_gives_the_same_answers_and_counts(self, pair, tmp_path, monkeypatch):
        task = measured_pair.task(5)
        settings = [Setting("plain"), Setting("strict"), Setting("judge", 0.5), Setting("random", 0.3)]
        (plain,) = evaluate(pair, task, settings[:1], decoding=DECODING).values()
        # answers of several lengths: what the first one says in the middle ends an answer
        monkeypatch.setattr(pair.target.generation_config, "eos_token_id", [3, plain["0"].tokens[6]])
        one = evaluate(pair, task, settings, decoding=DECODING)
        batched = Decoding(DECODING.num_assistant_tokens, DECODING.max_new_tokens, batch_size=3)
        many = evaluate(pair, task, settings, decoding=batched, journal_dir=tmp_path)
        for setting in settings:
            for name, answer in one[setting].items():
                other = many[setting][name]
                assert (other.tokens, other.codes) == (answer.tokens, answer.codes)
                assert (other.right, other.forwards) == (answer.right, answer.forwards)
        assert len({len(answer.tokens) for answer in many[Setting("plain")].values()}) > 1  # padding was cut off
        assert evaluate(pair, task, settings, decoding=batched, journal_dir=tmp_path) == many
        total = sum(answer.drafted for answer in one[settings[1]].values())
        assert sum(answer.drafted for answer in many[settings[1]].values()) == pytest.approx(total, rel=0.3)
        with pytest.raises(ValueError, match="leave out 'assisted'"):
            evaluate(pair, task, [Setting("plain"), Setting("assisted")], decoding=batched)
        with pytest.raises(ValueError, match="batch_size must be 1"):
            Decoding(temperature=1.0, batch_size=2)

    def test_sampling_repeats_with_its_seed(self, pair):
        hot = Decoding(5, 10, temperature=1.0, seed=3)
        first, second = (
            evaluate(pair, measured_pair.task(1), [Setting("plain"), Setting("typical", 0.1)], decoding=hot)
            for _ in range(2)
        )
        for setting, found in first.items():
            assert [a.tokens for a in found.values()] == [a.tokens for a in second[setting].values()]

    def test_plain_comes_first(self, pair):
        with pytest.raises(ValueError, match="'plain'"):
            evaluate(pair, measured_pair.task(1), [Setting("strict")])

    def test_disagreeing_tokenizers(self):
        other = measured_pair.tokenizer()
        other.add_tokens(["hello"])
        with pytest.raises(ValueError, match="tokenizers disagree"):
            Pair(measured_pair.model(), measured_pair.model(), measured_pair.tokenizer(), draft_tokenizer=other)

    def test_disagreeing_tokenizers_on_the_command_line(self, tmp_path, capsys):
        for name in ("target", "draft"):
            measured_pair.model().save_pretrained(tmp_path / name)
            tokenizer = measured_pair.tokenizer()
            if name == "draft":
                tokenizer.add_tokens(["hello"])
            tokenizer.save_pretrained(tmp_path / name)
        models = ["--target", str(tmp_path / "target"), "--draft", str(tmp_path / "draft")]
        assert cli.main(["evaluate", *models, "--problems", "1"]) == 2
        assert "the tokenizers disagree" in capsys.readouterr().err
        assert cli.main(["evaluate", *models, "--depth", "4"]) == 2
        assert "--depth is of the embedded pair" in capsys.readouterr().err
        assert cli.main(["bench", *models[:2]]) == 2
        assert "both --target and --draft" in capsys.readouterr().err

    def test_lm_eval_names_its_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "lm_eval", None)
        monkeypatch.delitem(sys.modules, "hf_judge.integrations.lm_eval", raising=False)
        with pytest.raises(ImportError, match=r"pip install 'hf-judge\[lm-eval\]'"):
            importlib.import_module("hf_judge.integrations.lm_eval")

    def test_bad_decoding(self):
        for bad in ({"num_assistant_tokens": 0}, {"max_new_tokens": 0}, {"temperature": -1}, {"temperature": math.nan}):
            with pytest.raises(ValueError, match=next(iter(bad))):
                Decoding(**bad)


class TestGivenText:
    def test_walk_goes_on_behind_a_rejection(self, pair):
        """The target's own greedy text with two tokens changed is accepted up to them."""
        prompt = pair.encode("What is this?")
        text = pair.target.generate(prompt, max_new_tokens=12, do_sample=False)[:, prompt.shape[1] :]
        rows = read_text(pair, prompt, text)
        assert walk(StrictVerifier(), rows) == [M] * 12
        changed = text.clone()
        changed[0, 4] = (text[0, 4] + 1) % 60 + 4
        codes = walk(StrictVerifier(), read_text(pair, prompt, changed))
        assert codes[:5] == [M, M, M, M, C]
        assert len(codes) == 12
        assert runs(codes)[0] == 4
        assert runs([M, C, C, R, M]) == [1, 0, 2]
        everything = walk(RandomVerifier(1.0), read_text(pair, prompt, changed))
        assert everything[:5] == [M, M, M, M, R]
        assert C not in everything

    def test_stop_tokens_in_a_text_are_not_rescued(self, pair):
        prompt, text = pair.encode("Hm"), torch.tensor([[10, 3, 11]])
        codes = walk(RandomVerifier(1.0), read_text(pair, prompt, text), torch.tensor([3]))
        assert codes[1] == C

    def test_details_match_a_direct_forward(self, pair):
        prompt, text = pair.encode("Hello"), pair.encode("abc")
        details = token_details(pair, read_text(pair, prompt, text))
        output = pair.target(torch.cat([prompt, text], 1), output_hidden_states=True)
        n = prompt.shape[1]
        for i, detail in enumerate(details):
            probabilities = output.logits[0, n + i - 1].softmax(-1)
            assert detail["target_prob"] == pytest.approx(probabilities[text[0, i]].item(), rel=1e-3)
            score = pair.heads["judge"](output.hidden_states[-1][0, n + i]).sigmoid().item()
            assert detail["judge"] == pytest.approx(score, rel=1e-3)
        assert "".join(d["text"] for d in details) == "abc"

    def test_score_texts_and_curves(self, pair):
        settings = [Setting("plain"), Setting("strict"), Setting("judge", 0.5), Setting("ensemble", 0.5)]
        rules, views = score_texts(pair, settings, [("Hi", "a cat?"), ("Ho", "<b>dog")], DECODING)
        assert [r["rule"] for r in rules] == ["strict", "judge", "ensemble"]
        assert rules[0]["tokens"] == 12
        assert rules[0]["rescued"] == 0.0 < rules[0]["rejected"]
        assert views[1]["codes"].keys() == {"strict", "judge=0.5", "ensemble=0.5"}
        assert "".join(t["text"] for t in views[1]["tokens"]) == "<b>dog"
        with pytest.raises(ValueError, match="empty"):
            score_texts(pair, settings, [("Hi", "")], DECODING)
        (curve,) = score_curves(pair, measured_pair.task(1), 1, DECODING).values()
        assert sum(group["n"] for group in curve["groups"].values()) <= 14
        for group in curve["groups"].values():
            assert sum(group["histogram"]) == group["n"]
            assert group["accepted"] == sorted(group["accepted"], reverse=True)

    def test_pieces_of_characters_that_span_tokens(self):
        class Bytes:
            clean_up_tokenization_spaces = False

            def decode(self, ids, skip_special_tokens):
                return bytes(ids).decode("utf-8", "replace")

            def convert_ids_to_tokens(self, token):
                return chr(token)

        assert pieces(Bytes(), list("aé🙂b".encode())) == ["a", "", "é", "", "", "", "🙂", "b"]


class TestCommand:
    @pytest.fixture(autouse=True)
    def embedded(self, pair, monkeypatch):
        """The command on the random pair: what it would load is not what is tested."""
        monkeypatch.setattr(cli_evaluate, "load_models", lambda *args, **kwargs: pair)

    def run(self, *arguments: str) -> int:
        return cli.main(["evaluate", "--max-new-tokens", "8", *arguments])

    def test_keys_files_and_escapes(self, tmp_path, capsys):
        texts = tmp_path / "texts.jsonl"
        texts.write_text(json.dumps({"prompt": "\x1b[31mHi", "response": "<script>alert(1)</script>"}))
        arguments = ["--problems", "1", "--rules", "strict", "judge=0.5", "--no-plots", "--texts", str(texts)]
        arguments += ["--json", str(tmp_path / "f.json"), "--report", str(tmp_path / "report")]
        assert self.run(*arguments) == 0
        rows = json.loads((tmp_path / "f.json").read_text())["rules"]
        wanted = {
            "rule", "threshold", "accuracy", "accuracy_interval", "answer_tokens", "forwards_per_answer",
            "accepted_per_forward", "seconds_per_answer", "speedup",
        }  # fmt: skip
        assert all(wanted <= row.keys() for row in rows)
        assert [row["rule"] for row in rows] == ["plain", "strict", "judge"]
        printed = capsys.readouterr()
        assert "\x1b" not in printed.out
        assert "no plain answer passes the checker" in printed.err  # random models solve nothing
        html = (tmp_path / "report" / "report.html").read_text()
        assert "<script>alert" not in html
        assert "hf-judge evaluate --max-new-tokens 8" in html
        assert list((tmp_path / "report" / "answers").glob("*.jsonl"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--rules", "nonsense"], "no rule 'nonsense'"),
            (["--rules", "judge=2"], "between 0 and 1"),
            (["--task", "nonsense"], "no task 'nonsense'"),
            (["--problems", "0"], "at least 1"),
            (["--texts", "missing.jsonl"], "missing.jsonl"),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, message, capsys):
        assert self.run(*arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize("option", ["--batch-size", "--num-assistant-tokens"])
    def test_a_count_that_is_none_is_one_line(self, option, capsys):
        with pytest.raises(SystemExit, match="2"):
            self.run(option, "0")
        error = capsys.readouterr().err
        assert f"argument {option}: expected a whole number from 1 on, got '0'" in error
        assert error.count("\n") == 1
