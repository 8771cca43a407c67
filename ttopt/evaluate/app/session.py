"""What the app does, without its page: runs of one sample that tell how far they are and can be stopped."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from rich.progress import Progress

from ttopt.config.checks import check_files, check_positions
from ttopt.config.files import CONFIG_FOLDERS, resolve
from ttopt.config.lookup import ours, standard_callbacks
from ttopt.config.parsing import changed, parse_fit
from ttopt.config.settings import FitSettings, MethodSettings, QuerySettings
from ttopt.data.find import find_samples
from ttopt.data.queries import Queries
from ttopt.data.video import strip, to_uint8
from ttopt.errors import UserError, brief
from ttopt.evaluate.files import TRACE, read_curves
from ttopt.evaluate.report import write_report
from ttopt.models.load import sources
from ttopt.optimization.training import TestTimeTraining
from ttopt.record.plain import check_video
from ttopt.record.result import FILE, STOPPED, Result
from ttopt.record.run_folder import new_path, read_json
from ttopt.run.console import Console, LiveSteps
from ttopt.run.loader import Loader
from ttopt.run.run import fit_all

GIVEN = "as started"  # the settings of the command line, among the names of configurations
SAMPLE = "sample"  # its id
EVERY = 1.0  # seconds between two looks at a run
VIDEOS = ("base.mp4", "video.mp4")
MOST_RUNS = 500  # that the page offers


@dataclass(frozen=True)
class Asked:
    """What the form says."""

    config: str
    prompt: str
    image: str | None
    goal: str = ""
    process: Sequence[str] = ()
    steps: int | None = None
    tau: float | None = None
    seed: int | None = None


@dataclass
class View:
    """How far a run is."""

    status: str = "waiting for the device"
    curves: list[dict[str, float]] = field(default_factory=list)  # as the rows of curves.csv
    seen: np.ndarray | None = None  # (H,W,3) uint8: the frames that the teacher graded last, side by side
    trace: dict[str, Any] = field(default_factory=dict)  # of the step loop
    clips: list[Path] = field(default_factory=list)
    folder: Path | None = None  # of the run
    place: Path | None = None  # of the sample
    result: Result | None = None
    error: str = ""
    done: bool = False

    def video(self, name: str) -> Path | None:
        """A video of the sample; None if there is none that can be shown."""
        if self.place is None:
            return None
        path = self.place / name
        try:
            check_video(path, self.place)
        except UserError:
            return None
        return path

    def files(self) -> list[Path]:
        """What can be downloaded: videos, LoRA and result."""
        if self.place is None or self.result is None:
            return []
        named = [self.place / name for name in (*VIDEOS, FILE, "curves.csv", TRACE)]
        found = [*named, *sorted(self.place.glob("adapter/*.safetensors"))]
        root = self.place.resolve()
        return [path for path in found if path.is_file() and path.resolve().is_relative_to(root)]


class Session:
    """The models, which one run after the other has to itself, and the folder of the runs."""

    def __init__(self, settings: FitSettings, folder: Path) -> None:
        self.settings, self.folder = settings, folder.resolve()
        self._load = Loader()
        self._device = threading.Lock()

    def base(self, config: str) -> FitSettings:
        """The settings that the form changes: those the app was started with, or a shipped configuration's. Raises
        UserError."""
        if config != GIVEN and config not in configurations():  # no path is made of what a visitor says
            raise UserError(f"--config {config}: there is no such configuration; choose one of the list")
        return self.settings if config == GIVEN else parse_fit(["--config", config])

    def settings_of(self, asked: Asked) -> FitSettings:
        """The settings of a run. Raises UserError, as the command line would."""
        base, questions = self.base(asked.config), QuerySettings(asked.goal.strip(), list(asked.process))
        own = dataclasses.replace(
            base.sample, prompt=asked.prompt, image=asked.image, id=SAMPLE, queries=questions
        )  # as they are: a prompt is no YAML
        numbers = {"optimization.steps": asked.steps, "optimization.tau": asked.tau, "seed": asked.seed}
        given = {name: value for name, value in numbers.items() if value is not None}
        found = changed(dataclasses.replace(base, sample=own), given, "the form")
        check_files(found)
        check_positions(found)
        return found

    def questions(self, asked: Asked) -> Queries:
        """The questions that the teacher would ask. Raises UserError."""
        settings = self.settings_of(dataclasses.replace(asked, goal="", process=()))
        ((sample,), _) = find_samples(settings)
        with self._device:
            return self._load(settings).teacher.queries(sample)

    def run(self, asked: Asked, stop: threading.Event) -> Iterator[View]:
        """Optimizes a sample; how far it is, again and again, and at last with its result or its error. When ``stop``
        is set, or nobody asks any more, the best so far is kept."""
        view = View()
        thread = threading.Thread(target=self._work, args=(asked, view, stop), daemon=True)
        thread.start()
        try:
            while thread.is_alive():
                yield view
                thread.join(EVERY)
                _look(view)
            view.done = True
            yield view
        finally:
            stop.set()

    def _work(self, asked: Asked, view: View, stop: threading.Event) -> None:
        with self._device:
            try:
                settings = self.settings_of(asked)
                view.folder = new_path(self.folder, "app").resolve()
                settings = dataclasses.replace(settings, run_dir=str(view.folder))
                view.status = sources(settings)
                console = Watching(view, stop, goes_on=settings.method == MethodSettings())
                found = fit_all(settings, console, lambda own: _callbacks(own, view, stop), self._load)
                if found.problems:
                    view.error = "; ".join(found.problems)
                if found.results:
                    (view.result,) = found.results
                    write_report(view.folder)
            except UserError as error:
                view.error = str(error)
            except Exception as error:  # the page says so, and goes on
                view.error = f"{type(error).__name__}: {brief(error)}"
            _look(view)

    def runs(self) -> list[str]:
        """The samples that lie in the folder, newest run first: "fit-20261120-074233/id-move-0-0000"."""
        places = self.folder.glob(f"*/samples/*/{FILE}")
        found = [place.parent for place in places if not place.parent.name.startswith(".")]
        names = [f"{place.parent.parent.name}/{place.name}" for place in found]
        return sorted(names, key=lambda name: (-self._age(name), name))[:MOST_RUNS]

    def _age(self, name: str) -> float:
        return self._place(name).stat().st_mtime

    def _place(self, name: str) -> Path:
        run, _, sample = name.partition("/")
        return self.folder / run / "samples" / sample

    def open(self, name: str) -> View:
        """A sample that lies in the folder. Raises UserError."""
        if name not in self.runs():  # no path is made of what a visitor says
            raise UserError(f"{name!r} is not in {self.folder}; choose one of the list")
        place = self._place(name)
        view = View(status=name, folder=place.parent.parent, done=True)
        view.result = Result.load(place, root=self.folder)
        _look(view, place)
        return view


def configurations() -> list[str]:
    """The shipped configurations of a single method."""
    found = []
    for path in sorted({file.stem for folder in CONFIG_FOLDERS for file in folder.glob("*.yaml")}):
        try:
            resolve(FitSettings, [path], None)
        except UserError:  # of compare
            continue
        found.append(path)
    return found


class Watching(Console):
    """Tells a view what a terminal would be told. A method that ``goes_on`` ends its optimization itself when it is
    stopped, and makes its video; another one ends at once."""

    def __init__(self, view: View, stop: threading.Event, goes_on: bool) -> None:
        super().__init__(quiet=True)
        self._view, self._stop, self._goes_on = view, stop, goes_on

    def live(self, progress: Progress, samples: int, steps: int) -> LiveSteps:
        return _Told(progress, samples, steps, self._view, self._stop, self._goes_on)


class _Told(LiveSteps):
    def __init__(
        self, progress: Progress, samples: int, steps: int, view: View, stop: threading.Event, goes_on: bool
    ) -> None:
        super().__init__(progress, samples, steps)
        self._view, self._stop, self._goes_on = view, stop, goes_on

    def status(self, text: str) -> None:
        super().status(text)
        self._view.status = text
        if self._stop.is_set() and not (self._goes_on and self._view.curves):
            raise UserError(f"{STOPPED}; the same command with this --run-dir goes on from what is done")

    def note(self, text: str) -> None:
        super().note(text)
        self._view.status = text


class Watch(L.Callback):
    """Tells a view each grade, and ends the optimization when it is to stop."""

    def __init__(self, view: View, stop: threading.Event, row: Callable[[Any], dict[str, float]]) -> None:
        self._view, self._stop, self._row = view, stop, row

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._view.curves = []

    def on_graded(self, trainer: L.Trainer, module: TestTimeTraining) -> None:
        row = module.rows[0]
        self._view.curves = [self._row(grade) for grade in row.grades]
        self._view.status = f"step {module.steps} of {module.settings.steps}"
        if row.frames is not None:
            self._view.seen = to_uint8(strip(row.frames)[None])[0]
        if self._stop.is_set():
            for each in module.open_rows:
                each.stop = STOPPED


def _callbacks(settings: FitSettings, view: View, stop: threading.Event) -> list[L.Callback]:
    return [*standard_callbacks(settings), Watch(view, stop, ours("callbacks.reward_curves").row)]


def _look(view: View, place: Path | None = None) -> None:
    """Reads what lies in a sample's folder, finished or not; what is damaged is left out."""
    if view.folder is None:
        return
    samples = view.folder / "samples"
    place = next(filter(Path.is_dir, (place or samples / SAMPLE, samples / f".{SAMPLE}")), None)
    if place is None:
        return
    view.place = place
    view.clips = [path for path in sorted(place.glob("clips/*.mp4")) if view.video(f"clips/{path.name}")]
    try:
        view.trace = read_json(place / TRACE)
        if view.done and not view.curves and (place / "curves.csv").is_file():
            view.curves = read_curves(place / "curves.csv", view.folder)
    except UserError as error:
        view.error = view.error or str(error)
