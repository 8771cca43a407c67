"""Settings: what a run can be told, as dataclasses, each group in a file of its own.

The defaults are the paper's (VLM-as-Teacher, arXiv 2606.02564, section 4); the file under configs/ says what a run
really uses. The text under each field is its --help text, its bounds stand beside its default (fields.py), and what
concerns several settings of a group is the group's ``problems``. parsing.py reads files and command lines. Nothing
heavy is imported here, so that ``--help`` and every mistake in a setting answer at once.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ttopt.config.chat import ChatSettings
from ttopt.config.fields import Group, bears, group, setting
from ttopt.config.models import (
    EMBEDDED,
    EMBEDDED_BASE,
    WEIGHTS,
    AdapterSettings,
    DecoderSettings,
    Dtype,
    LoraSettings,
    ReasonerSettings,
    TeacherSettings,
)
from ttopt.config.optimization import KEEP, BankSettings, OptimizationSettings
from ttopt.config.sample import QuerySettings, SampleSettings
from ttopt.config.yaml_text import dump

__all__ = [
    "EMBEDDED", "EMBEDDED_BASE", "KEEP", "METHOD_ARGUMENTS", "WEIGHTS", "AdapterSettings", "Arguments", "BankSettings",
    "CallbackSettings", "ChatSettings", "DecoderSettings", "Dtype", "FitSettings", "LoggingSettings", "LoraSettings",
    "MethodSettings", "OptimizationSettings", "QuerySettings", "ReasonerSettings", "SampleSettings", "TeacherSettings",
    "WorkerSettings", "flat", "is_free", "is_shared", "to_dict", "to_yaml",
]  # fmt: skip

METHOD_ARGUMENTS = "method.arguments"  # checked by the method itself

# Bare, because the parser would read every text among dict[str, Any]'s values as YAML once more.
Arguments = dict


@dataclass(frozen=True)
class LoggingSettings(Group):
    """Curves and previews. CSV files are always written."""

    wandb: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: as WANDB_MODE says, else online with a W&B key, else offline: into the run folder, for wandb sync."""
    project: str = "ttopt"
    """W&B project."""
    previews_every: int = setting(10, low=0, cap=1_000_000, give="0 for no previews")
    """Write the frames that the teacher sees every n steps; 0: never."""
    state_every: int = setting(5, low=0, cap=1_000_000, give="0 for no states")
    """Keep the state of the optimization every n steps (less often where that would take more than 2 % of the time), so
    that a killed run goes on in the middle of a sample; 0: never."""

    def problems(self) -> Iterator[str]:
        if not re.fullmatch(r"[^/\\#?%:]{1,128}", self.project):
            yield f"logging.project is {self.project!r}; give 1 to 128 characters without / \\ # ? % :"


@dataclass(frozen=True)
class CallbackSettings(Group):
    """One more Lightning callback of your own."""

    path: str
    """Its class path, for example my_package.MyCallback."""
    arguments: Arguments = dataclasses.field(default_factory=dict)
    """Its keyword arguments."""


@dataclass(frozen=True)
class MethodSettings(Group):
    """How a sample's video is made."""

    path: str = "ttopt.methods.TeacherLora"
    """The method's class path, e.g. ttopt.methods.TeacherLora or loop.StepLoop."""
    arguments: Arguments = dataclasses.field(default_factory=dict)
    """Its keyword arguments, e.g. --method.arguments.attempts 2."""


@dataclass(frozen=True)
class WorkerSettings(Group):
    """The workers of the engine ray: processes that load the models once and take one sample after the other."""

    count: int | None = setting(None, low=1, cap=65_536, give="1 or more, or null")
    """How many; null: as many as there is room for."""
    gpus: float | None = setting(None, cap=1024)
    """GPUs of each: 0.5 for two workers a GPU, 2 for models on two devices; null: 1 where there are GPUs, else 0."""
    cpus: float = setting(1.0, above=0, cap=65_536, give="CPU cores of each, e.g. 1")
    """CPU cores of each."""
    retries: int = setting(2, low=0, cap=1000)
    """How often a sample whose worker died is given to another one."""

    def problems(self) -> Iterator[str]:
        if self.gpus is not None and (self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus))):
            yield f"workers.gpus is {self.gpus}; give a part of one such as 0.5, or a whole number"


@dataclass(frozen=True)
class FitSettings(Group):
    """Run"""

    run_dir: str | None = setting(None, free=True, shared=True)
    """Folder of the run; give an old one to continue it. null: a new one under runs/."""
    seed: int = setting(0, low=0, cap=2**63 - 1)
    """Seed of the data set, the noise and the adapter."""
    dataset: Literal["miniworld", "vbvr", "ruler", "genvire", "vrbench", "physics_iq", "mme_cof", "folder"] = setting(
        "miniworld", shared=True
    )
    """Where samples come from when no sample.prompt is given."""
    root: str | None = setting(None, shared=True)
    """Folder of the data set (folder: or a .jsonl file); the miniworld needs none."""
    split: Literal["id", "ood", "all", "train", "eval", "dev_id", "dev_ood"] = setting("id", shared=True)
    """miniworld and vbvr: in or out of the distribution of the training data. vbvr also: all. miniworld also: dev_id
    and dev_ood, their twins for choosing settings. vrbench: train, eval or all."""
    families: list[str] | None = setting(None, cap=1000, shared=True)
    """Only these task families, e.g. move or '[move,maze]' (vbvr: tasks; ruler, genvire: categories or tasks;
    vrbench: kinds of mazes; physics_iq, mme_cof: categories); null: all (miniworld: the five that one clip can
    solve)."""
    limit: int = setting(5, low=1, cap=1_000_000, give="--limit 1 or more", free=True, shared=True)
    """How many samples."""
    ids: list[str] | None = setting(None, cap=100_000, shared=True)
    """Only these samples, by the names that results give them, e.g. '[id-move-0-0003]'; null: the first ones."""
    batch_samples: int = setting(1, low=1, cap=65_536, free=True)
    """How many samples are optimized side by side on the device, each with its own adapter: the same results up to
    rounding, sooner on small models. Only for ttopt.methods.TeacherLora and engine in_process."""
    engine: Literal["in_process", "ray"] = setting("in_process", free=True, shared=True)
    """in_process: one sample after the other, here. ray: several at once, on all GPUs of this machine or of a cluster
    (pip install -e '.[ray]'); the results are the same."""
    address: str | None = setting(None, free=True, shared=True)
    """ray: the cluster's head as host:port, or auto for the cluster that this machine belongs to; null: a Ray of this
    run's own, on this machine."""
    workers: WorkerSettings = group(WorkerSettings, free=True, shared=True)
    """Who solves the samples with the engine ray"""
    sample: SampleSettings = group(SampleSettings)
    """A sample of your own, instead of the data set's"""
    reasoner: ReasonerSettings = group(ReasonerSettings)
    """The video model that is optimized"""
    decoder: DecoderSettings = group(DecoderSettings)
    """The decoder inside the optimization loop"""
    teacher: TeacherSettings = group(TeacherSettings)
    """The vision-language model that writes the questions and grades the video"""
    adapter: AdapterSettings = group(AdapterSettings)
    """The LoRA, the only weights that are trained"""
    optimization: OptimizationSettings = group(OptimizationSettings)
    """The optimization of one sample"""
    bank: BankSettings = group(BankSettings)
    """A bank of adapters that satisfied the teacher, from which new samples may start"""
    method: MethodSettings = group(MethodSettings, shared=True)
    """How a sample's video is made"""
    chat: ChatSettings = group(ChatSettings)
    """The vision-language model that answers in words: plans, verdicts, rewrites"""
    logging: LoggingSettings = group(LoggingSettings, free=True)
    """Curves and previews"""
    callbacks: list[CallbackSettings] = setting([], cap=100)
    """More Lightning callbacks, e.g. '[{path: my_package.MyCallback, arguments: {every: 2}}]'"""

    def problems(self) -> Iterator[str]:
        yield from self._samples()
        yield from self._processes()

    def _samples(self) -> Iterator[str]:
        """What is wrong with where samples come from, and how they fit the teacher."""
        families = self.families or []
        if self.dataset != "miniworld" and self.root is None:
            yield f"dataset {self.dataset} needs its files; give their folder as --root"
        if self.families == []:
            yield "families is empty; name some, or give --families null for all"
        if self.ids == []:
            yield "ids is empty; name some samples, or give --ids null"
        if self.ids and self.sample.prompt is not None:
            yield "ids names samples of a data set, but sample.prompt gives one of your own; give one of the two"
        if len(set(families)) < len(families):
            yield f"families names one twice: {families}; name each once"
        if self.sample.prompt is not None and self.teacher.frames > self.sample.frames:
            yield (
                f"teacher.frames is {self.teacher.frames}, but the video has only {self.sample.frames} frames; "
                f"give --teacher.frames {self.sample.frames} or fewer"
            )

    def _processes(self) -> Iterator[str]:
        """What is wrong with how the work is shared out."""
        r, address = self.reasoner, self.address
        if self.batch_samples > 1 and self.engine != "in_process":
            yield (
                f"batch_samples is {self.batch_samples}, but a worker of the engine ray takes one sample at a time; "
                "give 1, and several workers a GPU by --workers.gpus 0.25"
            )
        if address is not None and not re.fullmatch(r"auto|[\w.-]+:\d{1,5}|\[[\da-fA-F:]+\]:\d{1,5}", address):
            yield (  # the address is not quoted: somebody may have put a password into it
                "address is neither host:port nor auto; give the head of a Ray cluster, e.g. 10.0.0.1:6379, or auto "
                "for the cluster that this machine belongs to"
            )
        if address is not None and self.engine != "ray":
            yield f"address is {address}, but the engine is {self.engine}; give --engine ray too"
        if not r.shard:
            return
        if self.engine == "ray":
            yield (
                "reasoner.shard is given with engine ray; start the processes with torchrun or srun, or leave out one "
                "of them"
            )
        if self.batch_samples > 1:
            yield (
                f"reasoner.shard is given with batch_samples {self.batch_samples}; give batch_samples 1: all processes "
                "work on one sample"
            )
        if not {r.device, self.teacher.device} <= {"auto", "cpu", "cuda"}:
            yield (
                f"reasoner.shard is given with devices {r.device} and {self.teacher.device}; give auto, cpu or cuda: "
                "each process takes the GPU of its own number"
            )


def is_free(name: str) -> bool:
    """Whether a setting may change between two calls: it decides neither a sample's result nor which result belongs to
    which sample, only how many there are, where they are computed, in how much memory, and what is told of them."""
    return bears(FitSettings, "free", name)


def is_shared(name: str) -> bool:
    """Whether a setting must be the same for all methods of a comparison: it decides which samples there are, who
    solves them, and where their results lie."""
    return bears(FitSettings, "shared", name)


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested dict of all settings."""
    return dataclasses.asdict(settings)


def to_yaml(settings: Any) -> str:
    """A complete configuration: YAML that ``--config`` reads back as the same settings."""
    return dump({"base": None, **to_dict(settings)})


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: {"teacher": {"frames": 9}} -> {"teacher.frames": 9}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result
