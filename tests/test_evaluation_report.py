"""The report: untrusted text stays text, the files agree, and the page works in a real browser.

The browser tests need Chromium and its driver; without them they are skipped, and say so.
"""

from __future__ import annotations

import csv
import json
import random
import re
import shutil

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from hf_judge.evaluation import plotting
from hf_judge.evaluation.figures import label
from hf_judge.evaluation.report import page, result, summary, write_report

HOSTILE = "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'>\u2028\x1b[31m &lt;b&gt; '\""


def row(rule: str, threshold: float | None, accuracy: float, speedup: float, **more) -> dict:
    n_right = round(200 * accuracy)
    ours = threshold is not None
    return {
        "rule": rule, "number": "threshold" if ours else "", "threshold": threshold, "n": 200,
        "accuracy": n_right / 200,
        "accuracy_interval": [accuracy - 0.02, min(1.0, accuracy + 0.02)], "gained": 1, "lost": 3, "mcnemar_p": 0.625,
        "answer_tokens": 100.0, "forwards_per_answer": 100 / speedup, "forwards_ratio": speedup * 1.5,
        "tokens_per_forward": speedup, "accepted_per_forward": speedup - 1,
        "drafted_per_answer": 150.0 if ours else None,
        "rescued_per_answer": 12.0 if ours else None, "corrected_per_answer": 4.0 if ours else None,
        "seconds_per_answer": 1 / speedup, "tokens_per_second": 100 * speedup, "speedup": speedup,
        "speedup_interval": [speedup * 0.95, speedup * 1.05], "tokens_per_second_ratio": speedup,
        "identical_to_plain": 0.5, "first_divergence": 12 if ours else None,
        "accepted_lengths": {3: 10, 8: 20, 16: 5} if ours else {}, "seconds_by_phase": None,
    } | more  # fmt: skip


def token(text: str, score: float) -> dict:
    return {
        "text": text, "target_says": "x", "target_prob": 0.25, "draft_prob": 0.5, "rank": 2, "entropy": 1.2,
        "judge": score,
    }  # fmt: skip


def found(words: tuple[str, ...] = ("She", " has", " 12", " apples", ".")) -> dict:
    draw = random.Random(0)
    tokens = [token(word, round(draw.random(), 3)) for word in words]
    codes = [i % 4 for i in range(len(words))]
    curve = {
        "n": 100,
        "histogram": [draw.randint(0, 20) for _ in range(20)],
        "accepted": [1 - (i / 50) ** 3 for i in range(51)],
    }
    rules = [
        row("plain", None, 0.97, 1.0),
        row("assisted", None, 0.97, 1.1),
        *(row("judge", t, 0.9 + 0.07 * t, 2.4 - t) for t in (0.3, 0.5, 0.9)),
        *(row("top-k", t, 0.6 + 0.3 / t, 1 + t / 4) for t in (5, 3, 2)),
    ]
    names = ("right, target agrees", "mistake, target differs")
    return result(
        rules,
        {"command": f"hf-judge evaluate {words[0]}", "pair": "a pair", "task": "a task", "n": 200,
         "num_assistant_tokens": 16, "seed": 0},
        warnings=["a warning: " + words[0]],
        score_curves={"judge": {"thresholds": [i / 50 for i in range(51)], "groups": dict.fromkeys(names, curve)}},
        samples=[
            {"name": str(i), "prompt": words[0] + "?", "setting": setting, "right": True, "forwards": 3, "codes": codes,
             "tokens": tokens}
            for i in range(2)
            for setting in ("judge=0.5", "top-k=2")
        ],
        text_rules=[
            {"rule": "judge", "number": "threshold", "threshold": 0.5, "texts": 1, "tokens": 5, "first_accepted": 2.0,
             "mean_accepted": 2.5, "rescued": 0.2, "rejected": 0.2}
        ],
        texts=[{"prompt": words[0], "tokens": tokens, "codes": {"judge=0.5": [c % 3 for c in codes]}}],
    )  # fmt: skip


class TestFiles:
    def test_the_data_block_cannot_be_closed_by_text(self):
        text = page(found((HOSTILE, HOSTILE)))
        assert text.count("<script") == 2
        assert text.count("</script") == 2
        assert "<img" not in text
        assert "window.pwned" in text  # it is there, as data
        block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
        assert "<" not in block
        assert json.loads(block)["samples"][0]["tokens"][0]["text"] == HOSTILE

    def test_the_page_names_nothing_outside_itself(self):
        text = page(found())
        addresses = set(re.findall(r"https?://[^\s\"'<>]+", text))
        assert addresses == {"http://www.w3.org/2000/svg"}  # a name space, not a place
        assert "default-src 'none'" in text
        assert not re.search(r"\b(fetch|XMLHttpRequest|innerHTML|eval|document\.write)\b", text)

    def test_all_files_hold_the_same_figures(self, tmp_path):
        what = found()
        files = {path.name: path for path in write_report(what, tmp_path / "new")}
        assert set(files) == {
            "report.html", "report.json", "rules.csv", "pareto.png", "forwards.png", "accepted.png",
        }  # fmt: skip
        assert json.loads(files["report.json"].read_text())["rules"] == json.loads(json.dumps(what["rules"]))
        with open(files["rules.csv"], newline="") as file:
            rows = list(csv.DictReader(file))
        assert [float(r["accuracy"]) for r in rows] == [r["accuracy"] for r in what["rules"]]
        assert float(rows[2]["speedup_high"]) == what["rules"][2]["speedup_interval"][1]
        assert all(files[name].read_bytes().startswith(b"\x89PNG") for name in files if name.endswith("png"))

    def test_what_is_no_number_is_refused(self):
        with pytest.raises(ValueError, match="not JSON compliant"):
            page(result([row("plain", None, 0.5, float("nan"))], {}))

    def test_summary_names_the_winner_and_who_fails(self):
        lines = summary(found()["rules"])
        assert lines[0].startswith("Plain decoding is right in 97.0% of 200 answers")
        assert lines[1].startswith("Fastest within 1 point of it: judge threshold 0.9: 1.50x")
        assert "top-k" in lines[-1]
        slow = [row("plain", None, 0.9, 1.0), row("judge", 0.5, 0.9, 0.8)]
        assert "does not pay" in summary(slow)[-1]

    def test_the_front_is_what_nothing_beats(self):
        what = found()
        assert what["pareto"][-1] == label(max(what["rules"], key=lambda r: r["speedup"]))
        assert "top-k threshold 2" not in what["pareto"]


@pytest.fixture(scope="module")
def browser():
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver is installed: the page was not tried in a browser")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: no browser test")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    made = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    made.set_page_load_timeout(120)
    yield made
    made.quit()


def opened(browser, tmp_path, what: dict, width: int = 1100, height: int = 900):
    browser.set_window_size(width, height)
    (tmp_path / "report.html").write_text(page(what), encoding="utf-8")
    browser.get((tmp_path / "report.html").as_uri())
    return browser


class TestInTheBrowser:
    def test_it_draws_without_errors(self, browser, tmp_path):
        opened(browser, tmp_path, found())
        assert browser.get_log("browser") == []
        headings = [node.text for node in browser.find_elements("css selector", "h2")]
        assert headings[:3] == ["In short", "Accuracy against speed-up", "All figures"]
        assert len(headings) == 8
        assert len(browser.find_elements("css selector", "svg.plot .mark")) == 8
        resources = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert [name for name in resources if not name.startswith("data:")] == []

    def test_hover_and_keyboard_show_the_same(self, browser, tmp_path):
        from selenium.webdriver import ActionChains, Keys

        opened(browser, tmp_path, found())
        tip = browser.find_element("id", "tip")
        tokens = browser.find_elements("css selector", ".tokens .token")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", tokens[1])
        ActionChains(browser).move_to_element(tokens[1]).perform()
        hovered = tip.text
        assert tip.is_displayed()
        for part in ("rescued", "judge score", "target probability 0.25", "draft probability 0.5"):
            assert part in hovered
        ActionChains(browser).move_to_element(browser.find_element("tag name", "h2")).perform()
        browser.execute_script("arguments[0].focus({preventScroll: true})", tokens[0])
        ActionChains(browser).send_keys(Keys.ARROW_RIGHT).perform()
        assert tip.text == hovered
        ActionChains(browser).send_keys(Keys.ESCAPE).perform()
        assert not tip.is_displayed()
        mark = browser.find_elements("css selector", "svg.plot .mark")[3]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", mark)
        ActionChains(browser).move_to_element(mark).perform()
        assert "McNemar" in tip.text

    def test_the_axis_can_be_changed(self, browser, tmp_path):
        from selenium.webdriver.support.ui import Select

        opened(browser, tmp_path, found())
        text = "return document.querySelector('svg.plot').textContent"
        assert "wall time per answer" in browser.execute_script(text)
        Select(browser.find_elements("css selector", "select")[0]).select_by_visible_text("target forwards")
        assert "times fewer target forwards" in browser.execute_script(text)
        assert "3.6x" not in browser.execute_script(text)
        assert len(browser.find_elements("css selector", "svg.plot .mark")) == 8
        assert browser.get_log("browser") == []

    def test_hostile_text_stays_text(self, browser, tmp_path):
        opened(browser, tmp_path, found((HOSTILE, "<b>bold</b>")))
        assert browser.execute_script("return window.pwned") is None
        assert browser.find_elements("css selector", "img, b, main script") == []
        shown = browser.find_elements("css selector", ".tokens .token")[0].get_property("textContent")
        assert "<script>window.pwned = 1</script>" in shown
        assert "\x1b" not in shown

    def test_choosers_legend_and_theme(self, browser, tmp_path):
        opened(browser, tmp_path, found())
        button = browser.find_elements("css selector", ".legend button")[2]
        browser.execute_script("arguments[0].click()", button)
        assert button.get_attribute("aria-pressed") == "false"
        hidden = "return [...document.querySelectorAll('svg.plot > g')].filter(g => g.style.display === 'none').length"
        assert browser.execute_script(hidden) == 1
        background = "return getComputedStyle(document.body).backgroundColor"
        light = browser.execute_script(background)
        browser.execute_script("arguments[0].click()", browser.find_element("id", "theme"))
        assert browser.execute_script(background) != light

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_it_follows_the_system(self, browser, tmp_path, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        opened(browser, tmp_path, found())
        style = "getComputedStyle(document.body)"
        ink, paper = (
            sum(map(int, re.findall(r"\d+", browser.execute_script(f"return {style}.{what}"))[:3]))
            for what in ("color", "backgroundColor")
        )
        assert (ink < paper) == (scheme == "light")
        assert abs(ink - paper) > 400  # contrast

    def test_a_phone_scrolls_in_one_direction(self, browser, tmp_path):
        metrics = {"width": 390, "height": 800, "deviceScaleFactor": 2, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            opened(browser, tmp_path, found())
            width = browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
            assert width[0] <= width[1] == 390
        finally:
            browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


class TestPlots:
    def test_only_settings_near_plain_are_drawn_and_the_others_are_named(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(plotting, "_save_figure", lambda figure, path, dpi: drawn.append(figure))
        plotting.plot_accuracy(found()["rules"], tmp_path / "x.png", "forwards_ratio")
        axes = drawn[0].axes[0]
        assert {text.get_text() for text in axes.texts} == {"plain", "assisted", "judge 0.9"}
        assert all(len(line.get_xdata()) == 1 for line in axes.lines if line.get_marker() != "None")
        assert axes.get_xlabel() == "times fewer target forwards than plain decoding"
        assert 90 < axes.lines[0].get_ydata()[0] <= 100
        note = drawn[0].get_supxlabel().replace("\n", " ")
        assert note.endswith("below plain: judge 0.3, judge 0.5, top-k 5, top-k 3, top-k 2.")

    def test_rules_at_one_place_share_a_name_and_no_two_rules_look_alike(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(plotting, "_save_figure", lambda figure, path, dpi: drawn.append(figure))
        many = [row(f"rule-{i}", 0.5, 0.96, 1 + i / 9) for i in range(14)]
        plotting.plot_accuracy([row("plain", None, 0.97, 1.0), *many, row("twin", 0.5, 0.96, 1.0)], "x.png", "speedup")
        axes = drawn[0].axes[0]
        assert "rule-0, twin 0.5" in {text.get_text() for text in axes.texts}
        looks = [(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() != "None"]
        assert len(looks) == len(set(looks)) == 15

    def test_names_keep_clear_of_each_other(self, tmp_path, monkeypatch):
        drawn = []
        monkeypatch.setattr(plotting, "_save_figure", lambda figure, path, dpi: drawn.append(figure))
        near = [row("judge", i / 10, 0.96 + 0.005 * (i % 3), 2 + i / 50) for i in range(6)]
        plotting.plot_accuracy([row("plain", None, 0.97, 1.0), *near], tmp_path / "x.png", "speedup")
        figure = drawn[0]
        renderer = FigureCanvasAgg(figure).get_renderer()
        boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])

    def test_accepted_lengths_of_nothing(self, tmp_path):
        plotting.plot_accepted([], tmp_path / "x.png")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
