"""Settings: dataclasses, YAML files and command-line overrides.

The defaults of the dataclasses are the paper's (VLM-as-Teacher, arXiv 2606.02564, section 4); the file under configs/
says what a run really uses. The text under each field is its --help text. Nothing heavy is imported here, so that
``--help`` and every mistake in a setting answer at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings

from ttopt.errors import UserError

S = TypeVar("S")
Dtype = Literal["float32", "bfloat16", "float16"]

DEFAULT_CONFIG = "mini"
EMBEDDED = "embedded"
EMBEDDED_BASE = "embedded-base"
WEIGHTS = Path(__file__).parent / "weights"
METHOD_ARGUMENTS = "method.arguments"  # checked by the method itself
SHOWN = 500  # characters of a parser's message
# In a checkout configs/ lies beside the package; a wheel carries it inside the package.
CONFIG_FOLDERS = (Path(__file__).parent.parent / "configs", Path(__file__).parent / "configs")


KEEP = Literal["last", "accepted", "better", "best"]


@dataclass(frozen=True)
class QuerySettings:
    """Your own yes/no questions instead of the teacher's, phrased so that "Yes" means satisfied."""

    goal: str = ""
    """The goal query ("By the end, is ...?"). Empty: the teacher writes all queries."""
    process: list[str] = field(default_factory=list)
    """One to three process queries, e.g. '["Does the red cross stay whole?"]'."""


@dataclass(frozen=True)
class SampleSettings:
    """A sample of your own, instead of the data set's."""

    prompt: str | None = None
    """What should happen in the video."""
    image: str | None = None
    """First frame (PNG, JPEG, ...), cropped and resized to width x height. Without it: text to video."""
    id: str = "sample"
    """Name of the sample's result folder."""
    frames: int = 89
    """Length of the video, 4k+1."""
    fps: int = 24
    """Frames per second."""
    height: int = 704
    """Height in pixels."""
    width: int = 1280
    """Width in pixels. Data sets from files keep their images' aspect and have at most this height x width."""
    multiple: int = 32
    """Data sets from files get sizes that are multiples of this; Wan2.2-5B needs 32."""
    queries: QuerySettings = field(default_factory=QuerySettings)
    """Your own yes/no questions instead of the teacher's (they also replace them on a data set)"""


@dataclass(frozen=True)
class ReasonerSettings:
    """The video model that is optimised."""

    model: str = EMBEDDED
    """Diffusers folder or hub id with transformer, vae, text_encoder and tokenizer; "embedded": the shipped one."""
    transformer: str | None = None
    """Another folder or hub id for the transformer alone, e.g. a step-distilled one; "embedded-base": the embedded
    one before its distillation."""
    dtype: Dtype = "float32"
    """Precision of the frozen weights; the adapter is always float32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    sigmas: list[float] = field(default_factory=lambda: [1.0, 0.75, 0.5, 0.25])
    """Noise levels of the few-step schedule, starting at 1, without the final 0."""
    renoise: bool = False
    """Add fresh noise after each step (DMD sampling) instead of an Euler step."""
    lora: str | None = None
    """A LoRA merged into the transformer when it is loaded, e.g. one that distils it to few steps: a safetensors file,
    or owner/name/file.safetensors on the hub."""
    low_noise_lora: str | None = None
    """The same for the second expert of Wan2.2-A14B."""
    ignore_image: bool = False
    """For models that were distilled without a first frame, as FastWan2.2 was: the image is left out."""
    vae_dtype: Dtype = "float32"
    """Precision of the VAE."""
    recompute: str = "none"
    """Blocks whose activations are computed again in the backward pass instead of being kept, which saves memory: none,
    all, or a range such as 0-14."""
    compile: bool = False
    """Compile the transformer's blocks: quicker steps after some slow first ones."""
    attention: str = "native"
    """One of diffusers' attention backends: native, flash, _flash_3, _native_cudnn, xformers, ..."""
    float8: bool = False
    """Keep the frozen linear layers as float8 (needs torchao): half the memory, slightly rounded."""
    offload: bool = False
    """The text encoder and the expert that is not needed wait in the CPU's memory."""
    shard: bool = False
    """Share out the blocks' weights among the processes that torchrun or SLURM has started, one a GPU (FSDP2), for a
    model that one GPU cannot hold."""


@dataclass(frozen=True)
class DecoderSettings:
    """The decoder inside the optimisation loop; the final video always uses the standard VAE."""

    kind: Literal["light", "standard"] = "light"
    """light: a tiny decoder. standard: the reasoner's own VAE."""
    model: str = EMBEDDED
    """Folder of the light decoder (config.json and model.safetensors)."""
    shrink: int = 0
    """Light decoder only: make frames this many times half as high and wide, for a teacher that needs no more."""
    checkpoint: bool = False
    """Standard decoder only: recompute each latent frame in the backward pass, slower but in little memory."""


@dataclass(frozen=True)
class TeacherSettings:
    """The vision-language model that writes the questions and grades the video."""

    model: str = EMBEDDED
    """Folder or hub id of a Qwen3-VL, Qwen2.5-VL, Qwen3.5 or InternVL3 (-hf); "embedded": the shipped one."""
    frames: int = 24
    """K: how many uniformly sampled frames the teacher sees."""
    dtype: Dtype = "float32"
    """Precision of the teacher's weights."""
    answers: list[str] = field(default_factory=lambda: ["Yes"])
    """The answer that means satisfied. Several of one token each add up, e.g. '[Yes,yes]'."""
    recompute: bool = False
    """Compute the layers again in the backward pass instead of keeping their activations, to save memory."""
    float8: bool = False
    """Keep the linear layers as float8 (needs torchao): half the memory, slightly rounded."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""


@dataclass(frozen=True)
class AdapterSettings:
    """The LoRA: the only weights that are trained, anew for each sample."""

    rank: int = 16
    """Rank of the update."""
    alpha: float | None = None
    """Scale of the update is alpha / rank; null: alpha = rank."""
    targets: Literal["attention", "attention+ffn", "cross_attention"] = "attention"
    """Which projections are adapted."""
    blocks: str = "all"
    """Which transformer blocks are adapted: all, or a range such as 2-5 (counted from 0, both ends included)."""


@dataclass(frozen=True)
class OptimisationSettings:
    """Algorithm 1's numbers."""

    steps: int = 40
    """N: most optimisation steps per sample."""
    lr: float = 5e-5
    """Learning rate of AdamW."""
    tau: float = 0.22
    """Stop as soon as the loss is at most tau (0.22: about 80 % sure of "Yes")."""
    goal_weight: float = 0.5
    """Weight of the goal query; the process queries share the rest."""
    denoise_step: Literal["first", "last", "all"] = "first"
    """Which denoising step is optimised."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    starts: int = 1
    """Start from the noise, of this many, whose one-step prediction has the lowest loss. 1: as it comes."""
    keep: KEEP = "last"
    """Which video is kept. last: the adapter's, accepted or not. accepted: the frozen model's if the loss stayed above
    tau. better: the one of the two with the lower loss. best: as better, or the adapter's one-step prediction."""


@dataclass(frozen=True)
class MemorySettings:
    """A bank of adapters that satisfied the teacher, from which new samples may start (docs/memory.md)."""

    folder: str | None = None
    """Folder of the bank, which runs share; null: none, every adapter starts from zero. Only ttopt.methods.TeacherLora
    uses it."""
    least_similarity: float = 0.9
    """Start from the most similar entry if prompt and first image are at least this similar: cosine, -1 to 1."""
    add: bool = True
    """Adapters that satisfy the teacher enter the bank, for later runs."""


@dataclass(frozen=True)
class LoggingSettings:
    """Curves and previews. CSV files are always written."""

    wandb: Literal["auto", "offline", "online", "disabled"] = "auto"
    """auto: online with a W&B key, else offline into the run folder."""
    project: str = "ttopt"
    """W&B project."""
    previews_every: int = 10
    """Write the frames that the teacher sees every n steps; 0: never."""
    state_every: int = 5
    """Keep the state of the optimisation every n steps (less often where that would take more than 2 % of the time), so
    that a killed run goes on in the middle of a sample; 0: never. Batches (batch_samples) start over."""


@dataclass(frozen=True)
class CallbackSettings:
    """One more Lightning callback of your own."""

    path: str
    """Its class path, for example my_package.MyCallback."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments."""


@dataclass(frozen=True)
class MethodSettings:
    """How a sample's video is made."""

    path: str = "ttopt.methods.TeacherLora"
    """The method's class path, e.g. ttopt.methods.TeacherLora or loop.StepLoop."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its keyword arguments, e.g. --method.arguments.attempts 2."""


@dataclass(frozen=True)
class ChatSettings:
    """The vision-language model that answers in words: plans, verdicts, rewrites."""

    backend: Literal["teacher", "local", "openai"] = "teacher"
    """teacher: the loaded teacher; local: another model in this process, in the teacher's precision and on its device,
    both greedily. openai: any server with OpenAI's interface."""
    model: str = ""
    """openai: the server's name of the model. local: a folder or hub id as for the teacher; "embedded": the shipped
    planner and verifier."""
    base_url: str | None = None
    """Address of the server, e.g. http://127.0.0.1:8000/v1; null: OpenAI's own."""
    key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; empty: the server wants none."""
    timeout: float = 120.0
    """Seconds to wait for a reply."""
    max_retries: int = 4
    """How often a call is repeated when the server is busy or cannot be reached, with growing pauses."""
    requests_per_minute: float | None = None
    """Most calls a minute; null: no limit."""
    temperature: float = 0.2
    """Of the server's replies; a model in this process answers greedily."""
    max_tokens: int = 1024
    """Longest reply."""
    constrained: bool = False
    """teacher, local: write only what fits the wanted JSON (needs ttopt[grammar]); servers are always asked."""
    prompts: str = "full"
    """Wording: full, mini (all that the embedded models know), or a folder of text files like loop/prompts."""
    price_in: float = 0.0
    """Price of a million tokens that are read, for the cost in the trace."""
    price_out: float = 0.0
    """Price of a million tokens that are written."""


@dataclass(frozen=True)
class WorkerSettings:
    """The workers of the engine ray: processes that load the models once and take one sample after the other."""

    count: int | None = None
    """How many; null: as many as there is room for."""
    gpus: float | None = None
    """GPUs of each: 0.5 for two workers a GPU, 2 for models on two devices; null: 1 where there are GPUs, else 0."""
    cpus: float = 1.0
    """CPU cores of each."""
    retries: int = 2
    """How often a sample whose worker died is given to another one."""


@dataclass(frozen=True)
class FitSettings:
    """Run"""

    run_dir: str | None = None
    """Folder of the run; give an old one to continue it. null: a new one under runs/."""
    seed: int = 0
    """Seed of the data set, the noise and the adapter."""
    dataset: Literal["miniworld", "vbvr", "ruler", "genvire", "folder"] = "miniworld"
    """Where samples come from when no sample.prompt is given."""
    root: str | None = None
    """Folder of the data set (folder: or a .jsonl file); the miniworld needs none."""
    split: Literal["id", "ood", "all", "dev_id", "dev_ood"] = "id"
    """miniworld and vbvr: in or out of the distribution of the training data. vbvr also: all. miniworld also: dev_id
    and dev_ood, their twins for choosing settings."""
    families: list[str] | None = None
    """Only these task families, e.g. '[move,maze]' (vbvr: tasks; ruler, genvire: categories or tasks); null: all."""
    limit: int = 5
    """How many samples."""
    batch_samples: int = 1
    """How many samples are optimised side by side on the device, each with its own adapter: the same results, sooner on
    small models."""
    engine: Literal["in_process", "ray"] = "in_process"
    """in_process: one sample after the other, here. ray: several at once, on all GPUs of this machine or of a cluster
    (needs ttopt[ray]); the results are the same."""
    address: str | None = None
    """ray: the cluster's head as host:port, or auto for the cluster that this machine belongs to; null: a Ray of this
    run's own, on this machine."""
    workers: WorkerSettings = field(default_factory=WorkerSettings)
    """Who solves the samples with the engine ray"""
    sample: SampleSettings = field(default_factory=SampleSettings)
    """A sample of your own, instead of the data set's"""
    reasoner: ReasonerSettings = field(default_factory=ReasonerSettings)
    """The video model that is optimised"""
    decoder: DecoderSettings = field(default_factory=DecoderSettings)
    """The decoder inside the optimisation loop"""
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """The vision-language model that writes the questions and grades the video"""
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    """The LoRA, the only weights that are trained"""
    optimisation: OptimisationSettings = field(default_factory=OptimisationSettings)
    """The optimisation of one sample"""
    memory: MemorySettings = field(default_factory=MemorySettings)
    """A bank of adapters that satisfied the teacher, from which new samples may start"""
    method: MethodSettings = field(default_factory=MethodSettings)
    """How a sample's video is made"""
    chat: ChatSettings = field(default_factory=ChatSettings)
    """The vision-language model that answers in words: plans, verdicts, rewrites"""
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    """Curves and previews"""
    callbacks: list[CallbackSettings] = field(default_factory=list)
    """More Lightning callbacks, e.g. '[{path: my_package.MyCallback, arguments: {every: 2}}]'"""


# Reading settings


class _Parser(ArgumentParser):
    """Mistakes become a UserError instead of a usage page."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_readable(message)) from ex


@cache
def _parser(group: type, command: str = "", what: str = "") -> _Parser:
    """The parser of a group of settings, with --config for a command; kept, because making one takes a while."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(prog=f"ttopt {command}", description=what)
    if command:
        parser.add_argument("--config", action=ActionConfigFile, help="A YAML file, or the name of one under configs/.")
    parser.add_class_arguments(group)
    return parser


def parse_fit(args: Sequence[str]) -> FitSettings:
    """Settings of ``ttopt fit`` from command-line arguments; see ``parse``. Without --config: configs/mini.yaml."""
    what = "Optimise videos at test time: one adapter per sample, trained until the teacher is satisfied."
    settings = parse(FitSettings, "fit", what, args, [] if _names_config(args) else [DEFAULT_CONFIG])
    check(settings)
    return settings


def parse(group: type[S], command: str, what: str, args: Sequence[str], defaults: Sequence[str]) -> S:
    """Settings of a command from its arguments, on top of the configurations ``defaults``; later ones win, also over
    an earlier --config.

    Raises UserError for an unknown setting (naming the nearest), a wrong type or a missing file. ``--help`` and
    ``--print_config`` print and exit.
    """
    known = setting_names(group)
    args = _checked_args(args, known)
    parser = _parser(group, command, what)  # type: ignore[arg-type]  # classes are hashable
    parser.default_config_files = [_checked_config(name, known) for name in defaults]
    values = vars(parser.instantiate(parser.parse_args(args)))
    found = group(**{name: value for name, value in values.items() if name != "config"})
    _check_filled(found)
    return found


def _names_config(args: Sequence[str]) -> bool:
    return any(arg.partition("=")[0] == "--config" for arg in args)


def changed(settings: FitSettings, values: Mapping[str, Any], where: str) -> FitSettings:
    """``settings`` with some values replaced by dotted name, e.g. {"teacher.frames": 5}; types are checked as on the
    command line. Raises UserError, naming ``where``."""
    names = setting_names()
    arguments = []
    for name, value in values.items():
        _check_name(name, f"{where}: {name}", names)
        arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    parser = _parser(FitSettings)
    try:
        base = parser.parse_object(to_dict(settings))
        found = FitSettings(**vars(parser.instantiate(parser.parse_args(arguments, namespace=base))))
        check(found)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return found


def config_path(name: str) -> Path:
    """The YAML file called ``name``: a path, or the name of a shipped configuration. Raises UserError."""
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.parent != Path():
        if not path.is_file():
            raise UserError(f"--config {name}: there is no such file")
        return path
    shipped = {file.stem: file for folder in reversed(CONFIG_FOLDERS) for file in sorted(folder.glob("*.yaml"))}
    if name not in shipped:
        raise UserError(f"--config {name}: no such configuration; there are {', '.join(shipped)}, or give a YAML file")
    return shipped[name]


def _checked_args(args: Sequence[str], known: Sequence[str]) -> list[str]:
    """The arguments with names spelt as the parser does and --config as paths; UserError for unknown names."""
    result: list[str] = []
    after_config = False
    for arg in args:
        if after_config:
            arg, after_config = _checked_config(arg, known), False
        elif arg.startswith("--") and arg != "--":
            name, equals, value = arg[2:].partition("=")
            name = name.replace("-", "_")
            if name not in {"help", "print_config"}:
                _check_name(name.removesuffix("+"), f"--{name}", known, flag="--")
            if name == "config" and equals:
                result.append("--config")
                arg = _checked_config(value, known)
            else:
                after_config = name == "config"
                arg = f"--{name}{equals}{value}"
        result.append(arg)
    return result


def _checked_config(name: str, known: Sequence[str]) -> str:
    """Path of a configuration whose keys are all known. Raises UserError."""
    path = config_path(name)
    for key, value in _items(read_config(path)):
        _check_name(key, f"{path}: {key}", known)
        if not isinstance(value, Mapping) and any(other.startswith(f"{key}.") for other in known):
            raise UserError(f"{path}: {key} is {value!r}; it must hold settings, which --help lists")
    return str(path)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands there twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_config(path: Path) -> Mapping[str, Any]:
    """What a YAML file says, unchecked but for its syntax. Raises UserError."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if isinstance(content, Mapping):
            list(_items(content))
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: no UTF-8, or no such date
        raise UserError(f"{path} is not valid YAML: {_readable(str(error))}") from error
    except RecursionError as error:
        raise UserError(f"{path} is not valid YAML: it is nested too deeply; write it flat") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} must hold settings such as 'seed: 1'; see configs/{DEFAULT_CONFIG}.yaml")
    return content


def _items(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Groups and settings by dotted name."""
    for key, value in content.items():
        yield f"{prefix}{key}", value
        # The arguments of callbacks lie in a list; all other mappings but a method's arguments are groups of settings.
        if isinstance(value, Mapping) and f"{prefix}{key}" != METHOD_ARGUMENTS:
            yield from _items(value, f"{prefix}{key}.")


def setting_names(group: type = FitSettings, prefix: str = "") -> list[str]:
    """Every setting and group by its dotted name, e.g. ``teacher.frames``."""
    names = []
    for spec in dataclasses.fields(group):
        names.append(prefix + spec.name)
        if dataclasses.is_dataclass(spec.default_factory):
            names += setting_names(spec.default_factory, f"{prefix}{spec.name}.")  # type: ignore[arg-type]
    return names


def _check_name(name: str, shown: str, known: Sequence[str], flag: str = "") -> None:
    """UserError for an unknown setting, naming the known one that looks most like it."""
    if name in known or name.startswith(f"{METHOD_ARGUMENTS}.") or (flag and name == "config"):
        return

    def likeness(candidate: str) -> float:
        # "--tau" means optimisation.tau, so the last part counts as much as the whole name.
        pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
        whole, last = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return max(whole, last) + 0.1 * whole

    nearest = max(known, key=likeness)
    raise UserError(f"{shown}: there is no such setting; the nearest is {flag}{nearest} (--help lists all)")


def _check_filled(group: Any, prefix: str = "") -> None:
    """UserError for a null where a value is needed; the parser lets it pass in files."""
    for spec in dataclasses.fields(group):
        value = getattr(group, spec.name)
        if dataclasses.is_dataclass(value):
            _check_filled(value, f"{prefix}{spec.name}.")
        elif value is None and "None" not in str(spec.type):
            raise UserError(f"{prefix}{spec.name} is null; give a value, or leave it out")


def _readable(message: str) -> str:
    """A parser's or YAML's message on one line, without the parser's own words for types."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message).replace("typing.", "")
    message = " ".join(re.sub(r'Parser key "([^"]+)":', r"--\1:", message).split())
    message = re.sub(
        r"Does not validate .* Subtypes: \[(.*), NoneType\] Errors: .* Given value:",
        r"Expected a \1. Got value:",
        message,
    )
    message = re.sub(
        r"Not a valid subclass of (\w+)\. Got value: (.*?) Subclass types expect .*",
        r"Expected \1 (see --help). Got value: \2",
        message,
    )
    return message if len(message) <= SHOWN else f"{message[:SHOWN]} ..."


# Writing and comparing settings


def to_dict(settings: FitSettings) -> dict[str, Any]:
    """Plain nested dict of all settings."""
    return dataclasses.asdict(settings)


def to_yaml(settings: FitSettings) -> str:
    """YAML that ``--config`` reads back as the same settings."""
    return yaml.safe_dump(to_dict(settings), sort_keys=False, allow_unicode=True)


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name: {"teacher": {"frames": 9}} -> {"teacher.frames": 9}."""
    result: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


# Checking settings


def check(settings: FitSettings) -> None:
    """Raises UserError for values that no run could use; needs no model and no data."""
    for name, value in flat(to_dict(settings)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} is {value}; give a finite number")
    o, sample, r = settings.optimisation, settings.sample, settings.reasoner
    sigmas, w, address, gpus = r.sigmas, settings.workers, settings.address, settings.workers.gpus
    families = settings.families or []
    rules = [
        (settings.seed >= 0, f"seed is {settings.seed}", "give 0 or more"),
        (settings.limit >= 1, f"limit is {settings.limit}", "give --limit 1 or more"),
        (settings.batch_samples >= 1, f"batch_samples is {settings.batch_samples}", "give 1 or more"),
        (
            settings.batch_samples == 1 or settings.engine == "in_process",
            f"batch_samples is {settings.batch_samples}, but a worker of the engine ray takes one sample at a time",
            "give 1, and several workers a GPU by --workers.gpus 0.25",
        ),
        (
            address is None or re.fullmatch(r"auto|[\w.-]+:\d{1,5}|\[[\da-fA-F:]+\]:\d{1,5}", address) is not None,
            "address is neither host:port nor auto",  # not quoted: somebody may have put a password into it
            "give the head of a Ray cluster, e.g. 10.0.0.1:6379, or auto for the cluster that this machine belongs to",
        ),
        (
            address is None or settings.engine == "ray",
            f"address is {address}, but the engine is {settings.engine}",
            "give --engine ray too",
        ),
        (w.count is None or w.count >= 1, f"workers.count is {w.count}", "give 1 or more, or null"),
        (
            gpus is None or 0 <= gpus <= 1 or (gpus > 1 and gpus == int(gpus)),
            f"workers.gpus is {gpus}",
            "give a part of one such as 0.5, or a whole number",
        ),
        (w.cpus > 0, f"workers.cpus is {w.cpus}", "give CPU cores of each, e.g. 1"),
        (w.retries >= 0, f"workers.retries is {w.retries}", "give 0 or more"),
        (
            settings.dataset == "miniworld" or settings.root is not None,
            f"dataset {settings.dataset} needs its files",
            "give their folder as --root",
        ),
        (
            settings.root is None or Path(settings.root).exists(),
            f"root {settings.root} does not exist",
            "give the folder of the data set",
        ),
        (
            not (r.shard and settings.engine == "ray"),
            "reasoner.shard is given with engine ray",
            "start the processes with torchrun or srun, or leave out one of them",
        ),
        (
            not r.shard or settings.batch_samples == 1,
            f"reasoner.shard is given with batch_samples {settings.batch_samples}",
            "give batch_samples 1: all processes work on one sample",
        ),
        (
            not (r.shard and (r.compile or r.float8)),
            "reasoner.shard is given with reasoner.compile or reasoner.float8",
            "leave out one of them",
        ),
        (
            not r.shard or {r.device, settings.teacher.device} <= {"auto", "cpu", "cuda"},
            f"reasoner.shard is given with devices {r.device} and {settings.teacher.device}",
            "give auto, cpu or cuda: each process takes the GPU of its own number",
        ),
        (sample.height >= 1, f"sample.height is {sample.height}", "give pixels, e.g. 480"),
        (sample.width >= 1, f"sample.width is {sample.width}", "give pixels, e.g. 832"),
        (sample.frames >= 1, f"sample.frames is {sample.frames}", "give 4k+1 frames, e.g. 81"),
        (sample.fps >= 1, f"sample.fps is {sample.fps}", "give frames a second, e.g. 16"),
        (sample.multiple >= 1, f"sample.multiple is {sample.multiple}", "give 32, or what the reasoner needs"),
        (settings.families != [], "families is empty", "name some, or give --families null for all"),
        (len(set(families)) == len(families), f"families names one twice: {families}", "name each once"),
        (o.tau >= 0, f"optimisation.tau is {o.tau}, but a loss is never below 0", "give 0.22, or 0 to use all steps"),
        (o.steps >= 1, f"optimisation.steps is {o.steps}", "give 1 or more (base.mp4 is the video of 0 steps)"),
        (o.lr > 0, f"optimisation.lr is {o.lr}", "give a positive learning rate such as 5e-5"),
        (0 <= o.goal_weight <= 1, f"optimisation.goal_weight is {o.goal_weight}", "give a number from 0 to 1"),
        (o.clip_norm > 0, f"optimisation.clip_norm is {o.clip_norm}", "give a positive number such as 1"),
        (o.starts >= 1, f"optimisation.starts is {o.starts}", "give 1 or more"),
        (o.weight_decay >= 0, f"optimisation.weight_decay is {o.weight_decay}", "give 0 or more"),
        (
            0 <= settings.decoder.shrink <= 3 and (settings.decoder.kind == "light" or not settings.decoder.shrink),
            f"decoder.shrink is {settings.decoder.shrink} for the {settings.decoder.kind} decoder",
            "give 0 to 3, and --decoder.kind light for any but 0",
        ),
        (
            bool(settings.teacher.answers) and all(answer.strip() for answer in settings.teacher.answers),
            f"teacher.answers is {settings.teacher.answers}",
            "give one answer or more, such as '[Yes]'",
        ),
        (
            settings.memory.folder is None or settings.memory.add or Path(settings.memory.folder).is_dir(),
            f"memory.folder {settings.memory.folder} does not exist",
            "give the folder of a bank, or --memory.add true to make one",
        ),
        (
            -1 <= settings.memory.least_similarity <= 1,
            f"memory.least_similarity is {settings.memory.least_similarity}",
            "give a cosine from -1 to 1, e.g. 0.9",
        ),
        (settings.teacher.frames >= 1, f"teacher.frames is {settings.teacher.frames}", "give 1 or more"),
        (settings.adapter.rank >= 1, f"adapter.rank is {settings.adapter.rank}", "give 1 or more"),
        (
            settings.adapter.alpha is None or settings.adapter.alpha > 0,
            f"adapter.alpha is {settings.adapter.alpha}",
            "give a positive number, or null for alpha = rank",
        ),
        (
            settings.chat.backend == "teacher"
            or (settings.chat.model != "" and (settings.chat.backend, settings.chat.model) != ("openai", EMBEDDED)),
            f"chat.model is {settings.chat.model!r}, but chat.backend is {settings.chat.backend}",
            "give the server's name of the model, or for local a folder, a hub id or embedded, as --chat.model",
        ),
        (
            settings.chat.prompts in {"full", "mini"} or Path(settings.chat.prompts).is_dir(),
            f"chat.prompts is {settings.chat.prompts!r}, which is no folder",
            "give full, mini, or a folder like loop/prompts",
        ),
        (settings.chat.timeout > 0, f"chat.timeout is {settings.chat.timeout}", "give seconds, e.g. 120"),
        (
            settings.chat.temperature >= 0,
            f"chat.temperature is {settings.chat.temperature}",
            "give 0 or more, e.g. 0.2",
        ),
        (settings.chat.price_in >= 0, f"chat.price_in is {settings.chat.price_in}", "give 0 or more"),
        (settings.chat.price_out >= 0, f"chat.price_out is {settings.chat.price_out}", "give 0 or more"),
        (settings.chat.max_retries >= 0, f"chat.max_retries is {settings.chat.max_retries}", "give 0 or more"),
        (settings.chat.max_tokens >= 1, f"chat.max_tokens is {settings.chat.max_tokens}", "give e.g. 1024"),
        (
            settings.chat.requests_per_minute is None or settings.chat.requests_per_minute > 0,
            f"chat.requests_per_minute is {settings.chat.requests_per_minute}",
            "give a positive number, or null for no limit",
        ),
        (settings.logging.previews_every >= 0, "logging.previews_every is below 0", "give 0 for no previews"),
        (settings.logging.state_every >= 0, "logging.state_every is below 0", "give 0 for no states"),
        (
            bool(sigmas) and sigmas[0] == 1 and sigmas[-1] > 0 and sigmas == sorted(set(sigmas), reverse=True),
            f"reasoner.sigmas is {sigmas}",
            "give falling noise levels from 1 to above 0 such as '[1.0,0.75,0.5,0.25]'",
        ),
        (
            sample.prompt is None or bool(sample.prompt.strip()),
            "sample.prompt is empty",
            "say what should happen: --sample.prompt 'the red cross moves to the green pad'",
        ),
        (
            sample.prompt is not None or sample.image is None,
            f"sample.image is {sample.image}, but there is no prompt",
            "say what should happen: --sample.prompt 'the red cross moves to the green pad'",
        ),
        (
            bool(sample.queries.goal.strip()) or not sample.queries.process,
            "sample.queries.process is given without a goal query",
            "give --sample.queries.goal too",
        ),
        (
            not sample.queries.goal or 1 <= len(sample.queries.process) <= 3,
            f"sample.queries.process has {len(sample.queries.process)} questions",
            "give one to three, e.g. --sample.queries.process '[\"Does the red cross stay whole?\"]'",
        ),
        (
            sample.prompt is None or settings.teacher.frames <= sample.frames,
            f"teacher.frames is {settings.teacher.frames}, but the video has only {sample.frames} frames",
            f"give --teacher.frames {sample.frames} or fewer",
        ),
    ]
    for fine, wrong, cure in rules:
        if not fine:
            raise UserError(f"{wrong}; {cure}")
