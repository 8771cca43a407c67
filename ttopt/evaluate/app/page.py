"""The app's page, by Gradio: a form, what a run shows while it goes, and the runs that lie in a folder."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr
import pandas as pd

from ttopt.config.app import AppSettings
from ttopt.data.images import read_image, write_image
from ttopt.data.miniworld import samples as miniworld_samples
from ttopt.data.video import to_uint8
from ttopt.errors import UserError, one_line
from ttopt.evaluate.app.session import GIVEN, Asked, Session, View, configurations
from ttopt.record.result import json_safe

USER = "ttopt"
EXAMPLES = 5  # one of each family of the embedded world
CSS = """
.video video, .seen img { image-rendering: pixelated; width: 100%; height: 100%; object-fit: contain; }
.problem textarea { color: #c0392b; font-weight: 600; }
"""


def serve(own: AppSettings, block: bool = True) -> Any:
    """Starts the app and, with ``block``, waits until it is ended. Returns Gradio's Blocks. Raises UserError."""
    session = Session(own.settings, Path(own.folder))
    session.folder.mkdir(parents=True, exist_ok=True)
    page = build(session)
    page.queue(max_size=own.waiting, default_concurrency_limit=4)
    try:
        page.launch(
            server_name=own.host,
            server_port=own.port or None,
            auth=(USER, own.password) if own.password else None,
            max_file_size=f"{own.upload_mb}mb",
            allowed_paths=[str(session.folder)],
            theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            css=CSS,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UserError(
            f"the app cannot listen on {own.host}:{own.port} ({one_line(str(error))}); give --port"
        ) from error
    print(f"app: {page.local_url}  (Ctrl-C ends it)", flush=True)
    if block:
        page.block_thread()
    return page


def build(session: Session) -> gr.Blocks:
    """The page."""
    stops: dict[str, threading.Event] = {}  # of the runs at work, by visitor

    with gr.Blocks(title="ttopt", analytics_enabled=False) as page:
        gr.Markdown("# ttopt\nA video model, optimized for one sample until a vision-language model is satisfied.")
        with gr.Tab("Run"), gr.Row():
            with gr.Column(scale=2, min_width=320):
                names = [GIVEN, *configurations()]
                config = gr.Dropdown(names, value=GIVEN, label="configuration", elem_id="config")
                upload = gr.File(label="first frame (PNG, JPEG, ...)", type="filepath", elem_id="upload")
                first = gr.Image(label="first frame", interactive=False, height=180, elem_classes="seen")
                prompt = gr.Textbox(label="prompt: what should happen", lines=3, elem_id="prompt")
                with gr.Accordion("the teacher's questions (empty: it writes them when the run begins)", open=False):
                    goal = gr.Textbox(label="goal: is it done at the end?", elem_id="goal")
                    process = gr.Textbox(label="process: one question a line, 1 to 3", lines=3, elem_id="process")
                    write = gr.Button("let the teacher write them", elem_id="write")
                with gr.Accordion("numbers", open=False):
                    o = session.settings.optimization
                    steps = gr.Number(o.steps, label="most steps", precision=0, elem_id="steps")
                    tau = gr.Number(o.tau, label="tau: stop at this loss", elem_id="tau")
                    seed = gr.Number(session.settings.seed, label="seed", precision=0, elem_id="seed")
                with gr.Row():
                    start = gr.Button("run", variant="primary", elem_id="run")
                    stop = gr.Button("stop, keep the best so far", elem_id="stop")
                known = _examples(session.folder / "app-examples")
                examples = gr.Gallery(
                    [path for path, _ in known], label="examples: choose one", columns=3, allow_preview=False,
                    elem_id="examples", elem_classes="seen",
                )  # fmt: skip
            with gr.Column(scale=3, min_width=340):
                shown = _shown("run")
        with gr.Tab("Earlier runs"):
            with gr.Row():
                which = gr.Dropdown(session.runs(), label=f"samples in {session.folder}", elem_id="runs")
                again = gr.Button("look again", elem_id="refresh")
            old = _shown("old")

        form = [config, prompt, upload, goal, process, steps, tau, seed]

        def look(name: str, image: str | None) -> tuple[Any, str]:
            """The uploaded image as it will be used, or why it cannot be."""
            if image is None:
                return None, ""
            try:
                size = session.base(name).sample
                frame = read_image(Path(image), size.height, size.width)
            except UserError as error:
                return None, f"error: {one_line(str(error))}"
            return to_uint8(frame[None])[0], ""

        def ask(*values: Any) -> tuple[str, str, str]:
            try:
                found = session.questions(_asked(*values))
            except UserError as error:
                return values[3], values[4], f"error: {one_line(str(error))}"
            return found.goal, "\n".join(found.process), ""

        def run(  # all by name: Gradio puts the request in by its place
            config: str,
            prompt: str,
            image: str | None,
            goal: str,
            process: str,
            steps: float | None,
            tau: float | None,
            seed: float | None,
            request: gr.Request,
        ) -> Iterator[list[Any]]:
            visitor = str(request.session_hash)
            event = stops[visitor] = threading.Event()
            asked = _asked(config, prompt, image, goal, process, steps, tau, seed)
            try:
                for view in session.run(asked, event):
                    yield _values(view)
            finally:
                event.set()
                if stops.get(visitor) is event:
                    del stops[visitor]

        def end(request: gr.Request) -> None:
            if (event := stops.get(str(request.session_hash))) is not None:
                event.set()

        def reopen(name: str | None) -> list[Any]:
            try:
                return _values(session.open(name) if name else View(status="", done=True))
            except UserError as error:
                return _values(View(status="", error=str(error), done=True))

        def choose(event: gr.SelectData) -> tuple[str, str]:
            return known[event.index]

        problem = shown[1]
        examples.select(choose, outputs=[upload, prompt])
        upload.change(look, [config, upload], [first, problem], show_progress="hidden")
        device: Any = {"concurrency_limit": 1, "concurrency_id": "device"}  # one after the other
        write.click(ask, form, [goal, process, problem], **device)
        start.click(run, form, shown, show_progress="minimal", **device)
        stop.click(end, queue=False)
        again.click(lambda: gr.Dropdown(session.runs()), outputs=which)
        which.change(reopen, which, old)
    return page


def _asked(
    config: str, prompt: str, image: str | None, goal: str, process: str, steps: float | None, tau: float | None,
    seed: float | None,
) -> Asked:  # fmt: skip
    """The form's values."""
    questions = [line.strip() for line in (process or "").splitlines() if line.strip()]
    most, number = (None if value is None else int(value) for value in (steps, seed))
    path = None if image is None else str(image)  # Gradio's is a text with a name, which YAML cannot write
    return Asked(config, prompt or "", path, goal or "", questions, most, tau, number)


def _shown(name: str) -> list[Any]:
    """The components that show a run, in the order of ``_values``."""
    status = gr.Textbox(label="what is being done", interactive=False, elem_id=f"{name}-status")
    problem = gr.Textbox(label="problem", interactive=False, elem_classes="problem", elem_id=f"{name}-problem")
    with gr.Row():
        base = gr.Video(label="frozen", interactive=False, autoplay=True, loop=True, elem_classes="video",
                        elem_id=f"{name}-base")  # fmt: skip
        video = gr.Video(label="optimized", interactive=False, autoplay=True, loop=True, elem_classes="video",
                         elem_id=f"{name}-video")  # fmt: skip
    with gr.Row():
        loss = gr.LinePlot(x="step", y="loss", title="loss", height=220, elem_id=f"{name}-loss")
        p_yes = gr.LinePlot(x="step", y="P(Yes)", color="question", title='P("Yes")', height=220, y_lim=[0, 1])
    gr.Markdown("The frames that the teacher graded last")
    seen = gr.Image(show_label=False, interactive=False, elem_classes="seen")
    summary = gr.JSON(label="result", elem_id=f"{name}-result")
    files = gr.File(
        label="downloads: LoRA, videos, result", file_count="multiple", interactive=False, elem_id=f"{name}-files"
    )
    with gr.Accordion("step loop: plan, clips, verdicts", open=False):
        trace = gr.JSON(label="what was asked and answered")
        clips = gr.Gallery(label="clips", columns=3, interactive=False)
    return [status, problem, base, video, loss, p_yes, seen, summary, files, trace, clips]


def _values(view: View) -> list[Any]:
    """What a view puts into the components of ``_shown``."""
    status = view.status
    if view.done and view.result is not None:
        status = f"{view.result.stop or 'done'}; {view.place}"
    return [
        status,
        f"error: {one_line(view.error)}" if view.error else "",
        _path(view.video("base.mp4")) if view.done else None,
        _path(view.video("video.mp4")) if view.done else None,
        _loss(view),
        _p_yes(view),
        view.seen,
        _summary(view),
        [str(path) for path in view.files()] if view.done else None,
        _told(view.trace) or None,
        [str(path) for path in view.clips],
    ]


def _path(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _loss(view: View) -> pd.DataFrame | None:
    rows = [(row["step"], row["loss"]) for row in view.curves if math.isfinite(row["loss"])]
    return pd.DataFrame(rows, columns=["step", "loss"]) if rows else None


def _p_yes(view: View) -> pd.DataFrame | None:
    rows = [
        (row["step"], name.removeprefix("p_yes_").replace("_", " "), value)
        for row in view.curves
        for name, value in row.items()
        if name.startswith("p_yes_") and math.isfinite(value)
    ]
    return pd.DataFrame(rows, columns=["step", "question", "P(Yes)"]) if rows else None


def _summary(view: View) -> dict[str, Any] | None:
    """What a person asks first."""
    result = view.result
    if result is None:
        return None
    found: dict[str, Any] = {"accepted": result.accepted, "why it stopped": result.stop}
    if (o := result.optimization) is not None:
        found |= {
            "kept": o.kept, "steps": o.steps, "loss before": o.video_before.loss, "loss after": o.video_after.loss,
            "questions": o.queries,
        }  # fmt: skip
    found |= {"seconds": result.seconds["total"], "score": None if result.score is None else result.score.success}
    shown: dict[str, Any] = json_safe(found)
    return shown


def _told(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """A step loop's calls and clips, as far as they are for reading."""
    calls = [{name: call.get(name) for name in ("role", "step", "text", "error")} for call in trace.get("calls", [])]
    clips = [
        {name: clip.get(name) for name in ("file", "step", "attempt", "action", "verdict")}
        for clip in trace.get("clips", [])
    ]
    return [*calls, *clips]


def _examples(folder: Path) -> list[tuple[str, str]]:
    """First frames and prompts of the embedded world, which the embedded models know."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for sample in miniworld_samples("id", None, 1, EXAMPLES):
        path = folder / f"{sample.family}.png"
        if sample.image is not None:
            write_image(path, sample.image)
            found.append((str(path), sample.prompt))
    return found
