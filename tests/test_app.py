"""``ttopt app``: what it does without a page, and (slow) a person's clicks in a real browser."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bad_input import Capture, refused

from ttopt.config.app import PASSWORD, AppSettings, parse_app
from ttopt.config.parsing import parse_fit
from ttopt.data.images import write_image
from ttopt.data.miniworld import samples
from ttopt.errors import UserError
from ttopt.evaluate.app.session import GIVEN, Asked, Session, View, configurations
from ttopt.record.result import ACCEPTED, STOPPED


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return Session(parse_fit(["--logging.wandb", "disabled"]), tmp_path_factory.mktemp("runs"))


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """A sample of the sprite world, as a person would upload it."""
    (sample,) = samples("id", ["move"], 0, 1)
    assert sample.image is not None
    write_image(tmp_path / "first.png", sample.image)
    return Asked(GIVEN, sample.prompt, str(tmp_path / "first.png"))


def last(views: Iterator[View]) -> View:
    *_, view = views
    return view


def test_a_run_is_told_as_it_goes_and_can_be_opened_again(session: Session, asked: Asked) -> None:
    view = last(session.run(asked, threading.Event()))
    assert view.error == "" and view.done and view.result is not None and view.result.stop == ACCEPTED
    assert view.curves[0]["step"] == 0 and "p_yes_goal" in view.curves[0]
    assert view.seen is not None and view.seen.shape == (96, 7 * 96, 3)
    assert {path.name for path in view.files()} >= {"base.mp4", "video.mp4", "result.json"}
    assert view.folder is not None and (view.folder / "report.html").is_file()
    (name,) = session.runs()
    again = session.open(name)
    assert again.result == view.result and again.curves[0]["loss"] == pytest.approx(view.curves[0]["loss"])
    for other in ("../../etc/passwd", f"{name}/..", ""):
        with pytest.raises(UserError, match="choose one of the list"):
            session.open(other)


def test_a_run_that_is_stopped_keeps_the_best_so_far(session: Session, asked: Asked) -> None:
    questions = session.questions(asked)
    assert questions.goal.endswith("?")
    stop = threading.Event()
    for view in session.run(
        dataclasses.replace(asked, goal=questions.goal, process=questions.process, tau=0.0, steps=1000), stop
    ):
        if len(view.curves) > 2:
            stop.set()
    assert view.error == "" and view.result is not None and view.result.stop == STOPPED
    o = view.result.optimization
    assert o is not None and o.queries["goal"] == questions.goal
    best = min(view.curves, key=lambda row: row["loss"])
    assert (o.steps, o.prediction_after.loss) == (best["step"], pytest.approx(best["loss"]))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": " "}, "sample.prompt is empty; say what should happen"),
        ({"image": "text.png"}, "cannot be read as an image; give a PNG or JPEG file"),
        ({"steps": 0}, "optimization.steps is 0; give 1 or more"),
        ({"config": "../../secret"}, "there is no such"),
        ({"process": ["Is it?"]}, "is given without a goal query"),
    ],
)
def test_errors_are_the_command_lines(
    session: Session,
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no image")
    view = last(session.run(dataclasses.replace(asked, **changes), threading.Event()))
    assert message in view.error and view.done and view.result is None


def test_it_listens_elsewhere_only_with_a_password(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    refused(["app", "--host", "0.0.0.0"], f"lets others in, but there is no password; set {PASSWORD}", capsys)
    monkeypatch.setenv(PASSWORD, "short")
    refused(["app", "--host", "0.0.0.0"], "is too short; give 8 characters or more", capsys)
    monkeypatch.setenv(PASSWORD, "long enough")
    assert parse_app(["--host", "0.0.0.0", "--seed", "3"]).settings.seed == 3
    refused(["app", "--port", "70000"], "--port is 70000; give 0 to 65535", capsys)
    refused(["app", "--run-dir", "x"], "--run-dir is nothing for the app", capsys)


def test_configurations_are_those_of_single_methods() -> None:
    found = configurations()
    assert {"mini", "collabvr", "wan22_5b"} <= set(found) and not {"compare", "ablations"} & set(found)


@pytest.mark.slow
def test_a_persons_clicks(browser: Any, asked: Asked, tmp_path: Path) -> None:
    pytest.importorskip("gradio")
    from ttopt.evaluate.app.page import serve

    settings = parse_fit(["--logging.wandb", "disabled"])
    served = serve(AppSettings(settings, "127.0.0.1", 0, str(tmp_path / "runs"), 5, 1), block=False)
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.set_default_timeout(60_000)
    try:
        page.goto(served.local_url)
        (tmp_path / "bad.png").write_text("no image")
        page.locator("#upload input[type=file]").set_input_files(str(tmp_path / "bad.png"))
        problem = page.locator("#run-problem textarea")
        page.wait_for_function("e => e.value.includes('cannot be read as an image')", arg=problem.element_handle())
        page.reload()
        page.locator("#examples button").nth(2).click()
        page.wait_for_function("document.querySelector('#prompt textarea').value != ''")
        page.reload()
        page.locator("#upload input[type=file]").set_input_files(str(asked.image))
        page.locator("#prompt textarea").fill(asked.prompt)
        page.locator("#run").click()
        page.locator("#run-video video").wait_for()
        page.locator("#run-base video").wait_for()
        assert ACCEPTED in page.locator("#run-status textarea").input_value()
        files = page.locator("#run-files")
        files.get_by_text("video", exact=True).wait_for()
        assert "video.mp4" in files.inner_text().replace("\n", "")
        page.get_by_role("tab", name="Earlier runs").click()
        page.locator("#refresh").click()
        page.locator("#runs input").click()
        page.get_by_role("option").first.click()
        page.locator("#old-video video").wait_for()
    finally:
        page.screenshot(path=str(tmp_path / "app.png"), full_page=True)
        page.close()
        served.close()
