"""The page: complete, escaped, without a network, and usable in a real browser."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ttopt.__main__ import main
from ttopt.config.comparison import CompareSettings, parse_compare
from ttopt.config.settings import to_yaml
from ttopt.data.video import write_video
from ttopt.evaluate.comparison import tabulate
from ttopt.evaluate.report import FILE, media, write_report
from ttopt.record.result import Cost, Graded, Optimization, Result, Scored

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil=1'> \"quoted\" & 'single'"
METHODS = """methods:
- {name: single, path: ttopt.methods.Single}
- {name: LoRA & loop, settings: {optimization.tau: 0.4}}
"""
CALLS = [
    {
        "role": "planner",
        "step": 1,
        "clip": 0,
        "text": 'Well: {"task_complete": false, "instruction": "first this", "target_state": ""}',
    },
    {"role": "verifier", "step": 1, "clip": 1, "text": "not here"},
    {"role": "router", "step": 1, "clip": 2, "text": "", "error": "no one is there"},
]
OWN = "Is it the method's own?"
QUERIES = ["Is it <there>?", EVIL]


def optimization() -> Optimization:
    """All that a page reads of one, whatever else it has."""
    known: dict[str, Any] = {field.name: None for field in dataclasses.fields(Optimization)}
    graded = Graded(0.4, [0.7, 0.6])
    known |= {
        "queries": {"goal": OWN, "process": QUERIES[1:]},
        "steps": 2,
        "lora_norm": 1.0,
        "drift": {"ssim": 0.9, "psnr": 30.0},
        "kept": "adapter",
    }
    known |= dict.fromkeys(("prediction_before", "prediction_after", "video_before", "video_after"), graded)
    known["score_before"] = Scored(False, 0.5, {"goal": False})
    return Optimization(**known)


def write_result(folder: Path, sample: str, family: str, success: bool, frames: int, **more: Any) -> None:
    folder.mkdir(parents=True)
    prompt = EVIL if sample == "c" else f"move {sample}"
    score = Scored(
        success, 0.5 + success / 2, {"goal": success}, *(() if success else ({"goal": EVIL}, {"goal": [3, 4, 8]}))
    )
    result = Result(
        sample=sample, family=family, split="id", prompt=prompt, method=more.pop("method", "m"),
        accepted=more.pop("accepted", None), stop="done", score=score, cost=Cost(1.125, 4, 0.1, 0),
        first_frame_ssim=1.0, seeds={}, seconds={"total": 1.0}, peak_mb={}, device="cpu", versions={"ttopt": "1"},
        finished="2026-01-01T00:00:00+00:00", **more,
    )  # fmt: skip
    result.save(folder)
    video = torch.linspace(0, 1, frames).view(-1, 1, 1, 1).expand(-1, 3, 48, 48)
    write_video(folder / "video.mp4", video, 8)


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """Three samples, two methods; one optimized, one sample of it traced and longer, one missing."""
    folder = tmp_path / "cmp <1>"
    folder.mkdir()
    (tmp_path / "c.yaml").write_text(METHODS)
    settings: CompareSettings = parse_compare(["--config", str(tmp_path / "c.yaml"), "--run-dir", str(folder)])
    (folder / "config.yaml").write_text(to_yaml(settings))
    families = {"a": "move", "b": "maze", "c": "move"}
    (folder / "queries.json").write_text(
        json.dumps({sample: {"goal": QUERIES[0], "process": QUERIES[1:]} for sample in families})
    )
    for number, (sample, family) in enumerate(families.items()):
        noted = {"rounds": [{"better": 2, "critique": EVIL}, {"better": 1}], "losses": [0.51234, 2], "none": None}
        write_result(folder / "methods/single/samples" / sample, sample, family, number == 1, 9, details=noted)
    place = folder / "methods" / settings.methods[1].slug
    write_result(place / "samples/a", "a", "move", True, 9, optimization=optimization())
    write_result(place / "samples/b", "b", "maze", False, 17, accepted=True)
    with (place / "samples/a/curves.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "loss", "loss_goal", "loss_process_1", "p_yes_goal", "p_yes_process_1"])
        rows.writerows([[0, 1.2, 1, 1, 0.2, 0.3], [1, 0.5, 0.4, 0.6, 0.6, 0.5], [2, "nan", 0.1, 0.1, 0.9, 0.9]])
    verdict = {"verdict": "reject", "progress": 0.5, "reason": EVIL, "suggestion": "slower"}
    clips = [{"step": 1, "attempt": 1, "prompt": "go", "verdict": verdict}, {"step": 1, "attempt": 2, "prompt": "go"}]
    (place / "samples/b/trace.json").write_text(json.dumps({"clips": clips, "calls": CALLS}))
    judged = {s: {"of": "", "p_yes": [0.9, 0.4], "ssim": 0.8, "psnr": 20.0} for s in "ab"}
    (place / "judged.json").write_text(json.dumps(judged))
    tabulate(settings, folder, families)
    return folder


@pytest.fixture
def fits(tmp_path: Path) -> Path:
    """A run of two samples; the first is optimized."""
    folder = tmp_path / "fits"
    for sample in "ab":
        place = folder / "samples" / sample
        write_result(place, sample, "move", True, 5, optimization=optimization() if sample == "a" else None)
    shutil.copy(folder / "samples/a/video.mp4", folder / "samples/a/base.mp4")
    (folder / "samples/a/curves.csv").write_text("step,loss,loss_goal,p_yes_goal\n0,1.2,1,0.2\n1,0.5,0.4,0.6\n")
    (folder / "samples/a/trace.json").write_text(json.dumps({"clips": [], "calls": CALLS}))
    (folder / "config.yaml").write_text("seed: 3\n")
    return folder


def test_page_is_complete_escaped_and_alone(comparison: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--run-dir", str(comparison)]) == 0
    text = (comparison / FILE).read_text()
    assert "<script>window.evil" not in text and "<img src=x" not in text
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "Comparison cmp &lt;1&gt;" in markup and "Is it &lt;there&gt;?" in markup and "LoRA &amp; loop" in markup
    assert markup.count("<video") == 5 and markup.count('<details class="sample"') == 3
    assert "1 counted 0" in markup and "could not be done" in markup, "the sample that is missing is said to be"
    assert "reject" in markup and "broken: goal" in markup and "frames 4–5, 9</span>" in markup
    assert "task complete:</span> False" in markup and "target state" not in markup
    told = [
        markup.index(words) for words in ("instruction:</span> first this", "slower", "not judged", "no one is there")
    ]
    assert "rounds 1: critique</td>" in markup and "0.512, 2</td>" in markup and "<td>none" not in markup
    assert told == sorted(told) and "not here" not in markup, "in the order of events"
    data, specs = (json.loads(re.findall(f'id="{n}">(.*?)</script>', text, re.DOTALL)[0]) for n in ("data", "specs"))
    assert data["a"]["queries"] == {"LoRA & loop": [OWN, EVIL]}, "those that its curves are of"
    lines = [json.dumps(specs["loss"][method]) for method in ("single", "LoRA & loop")]
    assert "tau = 0.05" in lines[0] and "tau = 0.4" in lines[1]
    assert not re.search(r"""(?:src|href)=["']?(?!data:|\{)[a-z]+:?//""", markup), "nothing from elsewhere"
    assert "NaN" not in re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0]


def test_many_videos_are_linked_instead(comparison: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "EMBED_MB", 0.001)
    text = write_report(comparison).read_text()
    sources = [source for sample in json.loads(re.findall(r'id="data">(.*?)</script>', text, re.DOTALL)[0]).values()
               for source in sample["sources"].values()]  # fmt: skip
    assert len(sources) == 5 and all((comparison / source).is_file() for source in sources)


def test_a_benchmarks_own_numbers_are_on_the_page(comparison: Path) -> None:
    """By group and metric, with what has no verdict; a judgment that failed changes no column."""
    config = comparison / "config.yaml"
    changes = {"official: false": "official: true", "miniworld": "vbvr", "root: null": "root: somewhere"}
    text = config.read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    config.write_text(text)
    summary = {"overall": {"task": 0.366, "weighted": 0.711}, "in domain": {"task": 0.3891}}
    verdict = {
        "name": "VBVR-Bench task score", "scores": {"a": 0.8}, "summary": summary, "provenance": {},
        "errors": {"b": "no circle <here>; counted as 0"}, "parts": {"a": {"task": 0.8, "weighted": 0.9}},
    }  # fmt: skip
    of = {"samples": ["a", "b", "c"], "videos": {"a": "now", "b": "now"}, "prompt": ""}
    (comparison / "methods/single/official.json").write_text(json.dumps({"of": of, "verdict": verdict}))
    text = write_report(comparison).read_text()
    cells = re.findall(r"<td>(.*?)</td>", text[text.index('class="own"') :])
    assert cells[:6] == ["task", "0.366", "0.3891", "weighted", "0.711", ""]
    assert '<th scope="col">benchmark score</th>' in text and "task 0.8, weighted 0.9" in text
    table = json.loads((comparison / "comparison.json").read_text())
    assert [row["failed"] for row in table["rows"]] == [["b", "c"], ["a", "b", "c"]]
    assert (
        "<b>single</b>, b: no circle &lt;here&gt;; counted as 0" in text
        and "<b>LoRA &amp; loop</b>, a: no verdict" in text
    )


def test_page_of_a_fit(tmp_path: Path) -> None:
    place = tmp_path / "run/samples/a"
    write_result(place, "a", "move", True, 9, optimization=optimization(), method="teacher_lora")
    shutil.copy(place / "video.mp4", place / "base.mp4")
    # The page needs neither the data nor a bank of adapters that the run had.
    gone = "dataset: folder\nroot: gone\nbank: {folder: gone, add: false}\n"
    (tmp_path / "run/config.yaml").write_text("seed: 3\n" + gone)
    text = write_report(tmp_path / "run").read_text()
    assert text.count("<video muted") == 2 and "<b>frozen</b>" in text and "✓ right" in text
    assert "<b>teacher LoRA</b>" in text and "teacher_lora" not in text, "a method has one name"


def opening(page: str) -> str:
    """The text of its h1."""
    return re.sub("<.*?>", "", re.findall("<h1>(.*?)</h1>", page, re.DOTALL)[0])


def ids(page: str) -> list[str]:
    return re.findall('data-id="(.*?)"', page)


def test_pages_open_with_the_result(tmp_path: Path, comparison: Path) -> None:
    """Before and after, and the repaired samples first, then the broken, the wrong, the right."""
    assert opening(write_report(comparison).read_text()) == "LoRA &amp; loop: 1 → 1 of 3 right, 1 repaired, 1 broken"
    outcomes = {"both": (True, True), "none": (False, False), "mended": (False, True), "spoiled": (True, False)}
    o, run = optimization(), tmp_path / "run"
    for name, (before, after) in outcomes.items():
        changed = dataclasses.replace(o, score_before=Scored(before, 0.5, {}))
        write_result(run / "samples" / name, name, "move", after, 5, optimization=changed)
    (run / "config.yaml").write_text("seed: 3\n")
    text = write_report(run).read_text()
    assert opening(text) == "2 → 2 of 4 right, 1 repaired, 1 broken" and ids(text) == [
        "mended",
        "spoiled",
        "none",
        "both",
    ]
    for place in (run / "samples").iterdir():
        result = Result.load(place)
        unscored = dataclasses.replace(o, score_before=None, video_before=Graded(1.2, [0.3, 0.3]))
        dataclasses.replace(result, score=None, accepted=place.name != "none", optimization=unscored).save(place)
    assert opening(write_report(run).read_text()) == "3 of 4 accepted by the teacher, loss 1.200 → 0.400"


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == main(["report", "--run-dir", str(tmp_path)]) == 2
    errors = capsys.readouterr().err
    assert "give the folder of a run or a comparison" in errors and "is neither a run's nor" in errors


@pytest.mark.parametrize("width, scheme", [(1280, "light"), (390, "dark")])
def test_in_a_browser(comparison: Path, browser: Any, width: int, scheme: str) -> None:
    """Videos play in step, filters and keys work, nothing is fetched, nothing overflows, no error is logged."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)  # on a busy machine
    noise: list[str] = []
    page.on("console", lambda message: noise.append(message.text))
    page.on("pageerror", lambda error: noise.append(str(error)))
    page.on("request", lambda asked: None if asked.url.startswith(("data:", "file:")) else noise.append(asked.url))
    page.goto(write_report(comparison).as_uri())
    page.wait_for_selector("#cost-chart svg")
    visible = "document.querySelectorAll('.sample:not([hidden])').length"

    def until(expression: str) -> None:
        """The page's policy forbids what wait_for_function does."""
        for _ in range(2400):
            if page.evaluate(expression):
                return
            page.wait_for_timeout(25)
        raise AssertionError(f"never true: {expression}")

    def filtered(field: str, value: str) -> int:
        page.select_option(field, value)
        return int(page.evaluate(visible))

    assert page.text_content("#count") == "3 of 3"
    assert filtered("#f-family", "maze") == 1 and filtered("#f-family", "") == 3
    assert [filtered("#f-outcome", o) for o in ("right", "repaired", "broken", "hacked", "failed", "wrong")] == [
        1, 1, 1, 1, 1, 1,
    ]  # fmt: skip
    assert "outcome=wrong" in page.url
    page.click("button[type=reset]")
    page.fill("#f-text", "QUOTED")
    assert page.evaluate(visible) == 1
    page.fill("#f-text", "")
    page.press("#f-text", "Escape")

    opened = ".sample[open]"
    page.wait_for_selector(f"{opened} .loss svg")
    assert page.get_attribute(opened, "data-id") == "a", "the first is open"
    until(f"document.querySelector('{opened} video').currentTime > 0")
    page.keyboard.press("j")
    assert page.get_attribute(opened, "data-id") == "b" and page.locator(opened).count() == 1
    times = "[...document.querySelectorAll('.sample[open] video')].map(v => v.currentTime)"
    ready = "[...document.querySelectorAll('.sample[open] video')].filter(v => v.readyState >= 2).length"
    until(f"{ready} === 2")
    sizes = "[...document.querySelectorAll('.sample[open] video')].map(v => v.clientWidth)"
    assert min(page.evaluate(sizes)) >= 320
    drawn = "[...document.querySelectorAll('.sample[open] canvas')].filter(c => c.width === 48).length"
    shown = 2 * min(17, 5 if width < 640 else 10)
    until(f"{drawn} >= {shown - 5}")  # one of the two videos is shorter than the other
    marked = page.locator(f"{opened} .breaks")
    assert [title.split("\n")[1] for title in marked.evaluate_all("all => all.map(b => b.title)")] == [
        f"{EVIL} No"
    ] * marked.count()
    assert marked.count() >= 2, "the frames that break a rule"
    strip = page.locator(f"{opened} .frames button").first
    number = int((strip.get_attribute("title") or "").split()[1])  # rather one that breaks a rule
    strip.click()
    page.keyboard.press("ArrowRight")
    until(f"{times}.every(t => Math.abs(t - {number + 0.5} / 8) < 0.02)")
    assert page.text_content(f"{opened} .frame") == f"{number + 1} / 17", "the longest video's length"
    page.keyboard.press("Space")
    until(f"Math.min(...{times}) > 0.45")
    assert page.evaluate("[...document.querySelectorAll('.sample[open] video')].every(v => !v.paused)")
    assert page.evaluate(f"Math.max(...{times}) - Math.min(...{times})") < 0.13, "in step, to one frame"
    until("[...document.querySelectorAll('.sample[open] video')].every(v => v.ended)")
    until(f"Math.max(...{times}) < 1 && document.querySelector('.sample[open] .play').textContent.includes('Pause')")
    page.keyboard.press("Space")
    paused = page.evaluate(times)
    page.wait_for_timeout(200)
    assert page.evaluate(times) == paused
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if scheme == "light" else "light")
    page.keyboard.press("?")
    assert page.locator("#help").is_visible()
    page.keyboard.press("Escape")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.evil") is None
    assert noise == []
