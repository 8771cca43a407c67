"""Methods x samples -> one table and one page.

runs/x/methods/<method>/       a run folder of its own (ttopt/record/run_folder.py), so that everything can be continued
runs/x/queries.json            the teacher's questions of every sample, with which all methods' videos are graded
runs/x/methods/<method>/judged.json   these grades, and the drift from the reference's video
runs/x/methods/<method>/official.json   the benchmark's own scores (ttopt/evaluate/judges/)
runs/x/outputs/<method>/       benchmarks: the videos where the official evaluators look
runs/x/comparison.json         the table;  report.html  the page;  config.yaml  the settings
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from ttopt.config.comparison import CompareSettings, chosen, settings_of
from ttopt.config.settings import MethodSettings, to_yaml
from ttopt.data.find import find_samples
from ttopt.data.sample import Sample
from ttopt.errors import RunError, UserError, printable
from ttopt.evaluate import judges
from ttopt.evaluate.comparison import Comparison, tabulate
from ttopt.evaluate.files import find_sample
from ttopt.evaluate.grading import grade
from ttopt.evaluate.report import FILE as PAGE
from ttopt.evaluate.report import write_report
from ttopt.evaluate.statistics import interval
from ttopt.evaluate.table import Row, agrees, columns
from ttopt.evaluate.tracking import log_comparison
from ttopt.methods import make_method
from ttopt.methods.existing import judged_video, video_path
from ttopt.models.chat import check_chat
from ttopt.record.run_folder import CONFIG, check_same, new_path, write_text, writing
from ttopt.run.console import Console
from ttopt.run.loader import Loader
from ttopt.run.run import MakeCallbacks, fit_all, open_workers


def compare(settings: CompareSettings, console: Console, callbacks: MakeCallbacks) -> Comparison:
    """Runs what is missing, grades all videos with the same questions, and writes the table.

    Raises UserError for what stops the whole comparison; a sample that one method cannot do is among ``problems``.
    """
    check_chat(settings.chat)
    samples, _ = find_samples(settings)
    evaluator = judges.find_evaluator(settings)  # what it lacks should not wait for the videos
    for method in chosen(settings):
        make_method(MethodSettings(method.path, method.arguments))  # a wrong one should not wait for the others
    folder = Path(settings.run_dir) if settings.run_dir else new_path(name="compare")
    each = {m.name: settings_of(m, settings, folder / "methods" / m.slug) for m in chosen(settings)}
    with writing(folder):
        if folder.exists() and any(folder.iterdir()) and not (folder / "methods").is_dir():
            raise UserError(f"{folder} is not empty and no comparison's folder; give another --run-dir")
        for own in each.values():  # before anything is written or made
            if (Path(str(own.run_dir)) / CONFIG).exists():
                check_same(Path(str(own.run_dir)), own)
        (folder / "methods").mkdir(parents=True, exist_ok=True)
        write_text(folder / CONFIG, to_yaml(settings))
    families = {sample.id: sample.family for sample in samples}
    tabulate(settings, folder, families, complete=False)  # so that an interrupted comparison has a page too
    load, problems = Loader(console.print), []
    try:
        with open_workers(settings) as workers:
            for name, own in each.items():
                console.print(f"{name}:")
                run = fit_all(own, console, callbacks, load, workers)
                problems += [f"{name}: {problem}" for problem in run.problems]
    except (KeyboardInterrupt, RunError):
        tabulate(settings, folder, families, problems, complete=False)
        if settings.report:
            console.print(f"page of what is done: {write_report(folder)}")
        raise
    problems += grade(settings, folder, samples, load, console.print)
    write_outputs(settings, folder, samples)
    if evaluator is not None:
        problems += judges.judge(evaluator, settings, folder, samples, console.print)
    found = tabulate(settings, folder, families, problems)
    if settings.report:
        write_report(folder)
    log_comparison(settings, folder, found.score, found.table, console.print)
    return found


def write_outputs(settings: CompareSettings, folder: Path, samples: Sequence[Sample]) -> None:
    """Copies of the videos where a benchmark's evaluator looks for them; the embedded world has none."""
    if settings.dataset == "miniworld" or settings.sample.prompt is not None:
        return
    for method in chosen(settings):
        for sample in samples:
            place = folder / "methods" / method.slug / "samples" / sample.id
            target = folder / "outputs" / method.slug / video_path(sample, settings.dataset)
            result = find_sample(place, folder)
            if result is None or result.error:
                continue
            with writing(folder):
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_suffix(".part")
                shutil.copyfile(judged_video(place), temporary)
                temporary.replace(target)


def show(found: Comparison, console: Console) -> None:
    """Prints the table, and the benchmark's own numbers."""
    settings = found.settings
    reference = next(r for r in found.table if r.method == settings.reference)
    shown = [column for column in columns(found.table) if column in SHOWN]
    against = any(row.paper is not None for row in found.table)
    title = f"{len(next(iter(found.entries.values())))} samples, 95 % intervals"
    table = Table(title=title, title_justify="left")
    table.add_column("method", no_wrap=True)
    for header in (found.score, f"over {settings.reference}", "+/-, p"):
        table.add_column(header, justify="right", no_wrap=True)
    for header in (*(SHOWN[column] for column in shown), *(("paper", "same sign") if against else ())):
        table.add_column(header, justify="right", no_wrap=True)
    for row in found.table:
        cells = [escape(row.method), interval(row.score)]
        gain = row.gain
        cells += [interval(gain.difference, "+"), f"{gain.better}/{gain.worse}, {gain.p:.3f}"] if gain else ["", ""]
        cells += [_cell(row, column) for column in shown]
        cells += [_number(row.paper), agrees(row, reference)] if against else []
        table.add_row(*cells)
    console.output.print(table)
    if found.official:
        console.print(f"{next(iter(found.official.values())).name}: the benchmark's own numbers")
        console.output.print(_own_numbers(found))
    for row in found.table:
        lost = [s for s in row.failed if found.entries[row.method][s].failed]
        unjudged = [s for s in row.failed if s not in lost]
        if lost:
            console.print(f"{row.method}: no usable video for {', '.join(lost)}; counted as 0")
        if unjudged:
            console.print(f"{row.method}: no verdict on {', '.join(unjudged)}; counted as 0")
    if settings.report:
        console.print(f"page: {found.folder / PAGE}")
    console.print(f"results: {found.folder}")


def _own_numbers(found: Comparison) -> Table:
    """The benchmark's own numbers: a row for every method and metric, a column for every group of samples."""
    verdicts = found.official
    groups = list(dict.fromkeys(group for v in verdicts.values() for group in v.summary))
    table = Table()
    for header in ("method", "metric"):
        table.add_column(header, no_wrap=True)
    for group in groups:
        table.add_column(escape(printable(group)), justify="right", overflow="fold")
    for method, verdict in verdicts.items():
        for metric in dict.fromkeys(m for numbers in verdict.summary.values() for m in numbers):
            cells = [_number(verdict.summary.get(group, {}).get(metric)) for group in groups]
            table.add_row(escape(method), escape(printable(metric)), *cells)
    return table


SHOWN = {
    "steps": "steps",
    "unstepped": "no step",
    "hacked": "hacked",
    "generated_seconds": "video s",
    "reasoner_forwards": "forwards",
    "wall_seconds": "wall s",
}


def _cell(row: Row, column: str) -> str:
    """A number, with how many samples are behind it where these are not all."""
    value = _number(getattr(row, column))
    return f"{value} of {row.counted[column]}" if column in row.counted and value != "-" else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
