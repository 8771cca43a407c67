"""Settings of ``ttopt compare``: those of a fit, and a list of methods. Nothing heavy is imported here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ttopt.config.checks import check, check_files, check_positions
from ttopt.config.fields import Group, hints, setting
from ttopt.config.parsing import changed, parse
from ttopt.config.settings import Arguments, FitSettings, MethodSettings, flat, is_shared
from ttopt.errors import UserError

DEFAULT = "compare"
BY_RULE = ("vbvr", "vrbench", "physics_iq")  # the data sets with an evaluator that costs no judge's replies
JUDGED = (*BY_RULE, "ruler", "genvire", "mme_cof")  # all with an evaluator of their own


@dataclass(frozen=True)
class Compared(Group):
    """One row of the table."""

    name: str
    """What the table calls it."""
    path: str = "ttopt.methods.TeacherLora"
    """The method's class path."""
    arguments: Arguments = field(default_factory=dict)
    """Its keyword arguments."""
    settings: Arguments = field(default_factory=dict, metadata={"keys": hints(FitSettings)})
    """Settings of its own, by dotted names, e.g. {teacher.frames: 5}."""
    paper: float | None = None
    """The paper's number for this row (of an ablation), to be compared in sign with ``reference``'s."""

    @property
    def slug(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9.=+-]+", "_", self.name.lower()).strip("_.")


@dataclass(frozen=True)
class CompareSettings(FitSettings):
    """Comparison"""

    methods: list[Compared] = setting([], cap=1000)
    """The methods: a list of {name, path, arguments, settings}."""
    only: list[str] | None = setting(None, cap=1000)
    """Only these of the methods, by name; null: all."""
    reference: str = "single"
    """The method that all others are compared with, sample by sample."""
    questions: bool = True
    """Grade all final videos with the teacher's questions."""
    official: bool = False
    """Run the benchmark's own evaluator: vbvr needs VBVR-EvalKit; ruler, genvire and mme_cof a judge (chat.backend
    openai); vrbench and physics_iq OpenCV."""
    judge_prompt: str | None = None
    """ruler: file with the judge's instruction, e.g. the benchmark's eval/system_prompt.txt; null: ours."""
    report: bool = True
    """Write the page (report.html) at the end."""


def parse_compare(args: Sequence[str]) -> CompareSettings:
    """Settings of ``ttopt compare``; without --config: configs/compare.yaml. Raises UserError, see
    ttopt.config.parsing.parse."""
    return _parse(args, files=True)


def read_compare(args: Sequence[str]) -> CompareSettings:
    """The same without looking whether the files are there that a run needs: for a comparison that has run."""
    return _parse(args, files=False)


def _parse(args: Sequence[str], files: bool) -> CompareSettings:
    what = "Compare methods on the same samples: one table and one page."
    settings = parse(CompareSettings, "compare", what, args, DEFAULT)
    check(settings)
    _check(settings, files)
    return settings


@dataclass(frozen=True)
class EvaluateSettings(CompareSettings):
    """Evaluation"""

    videos: list[str] = setting([], cap=1000)
    """Folders of videos, one a system: where the benchmark's evaluator looks, else {sample id}.mp4."""
    names: list[str] | None = setting(None, cap=1000)
    """What the table calls the systems; null: their folders' names."""


def parse_evaluate(args: Sequence[str]) -> CompareSettings:
    """Settings of ``ttopt evaluate``: a comparison of videos that exist. Raises UserError."""
    what = "Score videos that exist, of any system, without generating any."
    settings = parse(EvaluateSettings, "evaluate", what, args)
    if not settings.videos:
        raise UserError("videos is empty; give a folder of videos as --videos '[folder]'")
    names = settings.names or [Path(folder).resolve().name for folder in settings.videos]
    if len(names) != len(settings.videos):
        raise UserError(f"{len(settings.videos)} folders of videos, but {len(names)} names; give one each")
    systems = [
        Compared(name, "ttopt.methods.Existing", {"videos": str(Path(folder).resolve())})
        for name, folder in zip(names, settings.videos, strict=True)
    ]
    if settings.official and settings.dataset in BY_RULE and "static" not in names:
        # VBVR-Bench's gives a repeated first frame more than it gives leading models: no number should stand alone.
        systems.append(Compared("static", "ttopt.methods.Static"))
    shared = {spec.name: getattr(settings, spec.name) for spec in dataclasses.fields(CompareSettings)}
    reference = names[0] if settings.reference == CompareSettings.reference else settings.reference
    if reference not in names:
        raise UserError(f"reference is {reference!r}, but the systems are {', '.join(names)}")
    found = CompareSettings(**{**shared, "methods": systems, "reference": reference})
    check(found)
    _check(found, files=True)
    return found


def _check(settings: CompareSettings, files: bool) -> None:
    if files:
        check_files(settings)
    names = [method.name for method in settings.methods]
    slugs = [method.slug for method in settings.methods]
    for name, slug in zip(names, slugs, strict=True):
        if not slug or slugs.count(slug) > 1:
            raise UserError(f"methods: the name {name!r} is empty or too like another; give each its own")
    if not names:
        raise UserError("methods is empty; name some, as configs/compare.yaml does")
    for name in settings.only or ():
        if name not in names:
            raise UserError(f"only names {name!r}, but the methods are {', '.join(names)}")
    run = [method.name for method in chosen(settings)]
    if settings.reference not in run:
        raise UserError(f"reference is {settings.reference!r}, but the methods are {', '.join(run)}")
    if settings.method != MethodSettings():
        raise UserError("compare takes its methods from the list methods; leave --method out")
    if settings.official and settings.dataset not in JUDGED:
        raise UserError(f"dataset {settings.dataset} has no evaluator of its own; leave --official out")
    if settings.official and settings.sample.prompt is not None:
        raise UserError("a sample of your own has no official evaluator; leave --official or --sample.prompt out")
    for method in settings.methods:
        for name in flat(method.settings):
            # The embedded world's samples are the seed's; elsewhere it only decides the noise.
            if is_shared(name) or (name == "seed" and settings.dataset == "miniworld"):
                raise UserError(f"method {method.name}: {name} must be the same for all methods; give it as --{name}")
        own = settings_of(method, settings, Path())
        try:
            if files:
                check_files(own)
                check_positions(own)
        except UserError as error:
            raise UserError(f"method {method.name}: {error}") from error


def chosen(settings: CompareSettings) -> list[Compared]:
    """The methods that are wanted, in the order of the list."""
    return [method for method in settings.methods if settings.only is None or method.name in settings.only]


def settings_of(method: Compared, settings: CompareSettings, folder: Path) -> FitSettings:
    """The settings of one method's own run folder. Raises UserError for a setting that does not exist."""
    shared = {spec.name: getattr(settings, spec.name) for spec in dataclasses.fields(FitSettings)}
    shared |= {"run_dir": str(folder), "method": MethodSettings(method.path, method.arguments)}
    return changed(FitSettings(**shared), flat(method.settings), f"method {method.name}")
