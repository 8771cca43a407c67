"""Bad input, one line a case: what is given, and what the one sentence about it says.

Everything that a user, a data set, a download or a model can get wrong ends in one sentence that names the file or the
setting and the cure, with exit code 2, without a traceback, and with nothing half-written. " .. " in an expected
sentence stands for anything.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import GOAL, PROCESS
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import BaseModel
from safetensors.torch import load as tensors
from safetensors.torch import save_file
from tiny import tiny_sample, tiny_transformer

from loop.planner import Plan
from loop.router import Route
from loop.verifier import Verdict
from ttopt import engine
from ttopt.chat import ChatError, Message, Reply, ask
from ttopt.cli import main
from ttopt.config import FitSettings, TeacherSettings, parse_fit, setting_names
from ttopt.errors import UserError
from ttopt.models import Models
from ttopt.reasoner import LightDecoder
from ttopt.reasoner.loading import load_networks, merge_lora
from ttopt.replies import parse_reply
from ttopt.result import Cost, Result
from ttopt.sample import Sample
from ttopt.teacher import Teacher
from ttopt.teacher.queries import _Reply

Capture = pytest.CaptureFixture[str]
FEW = hypothesis_settings(
    max_examples=60, deadline=None, database=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def one_sentence(said: str, expected: str) -> None:
    assert "\n" not in said and "\r" not in said and "Traceback" not in said, said
    assert len(said) < 1500, f"{len(said)} characters"
    assert re.search(".*".join(map(re.escape, expected.split(" .. "))), said), said


def refused(args: list[str], expected: str, capsys: Capture) -> None:
    """The command says one sentence and ends with 2."""
    assert main(args) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith("\n"), said
    one_sentence(said[:-1], expected)


def refused_untouched(folder: Path, args: list[str], expected: str, capsys: Capture) -> None:
    """The same, and ``folder`` holds what it held."""
    before = contents(folder)
    refused(args, expected, capsys)
    assert contents(folder) == before


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, where no model can be loaded: what is tested must be noticed before."""

    def load(settings: FitSettings) -> Any:
        raise AssertionError("not noticed before the models were loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(engine, "load_models", load)
    return tmp_path


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# Settings

LONG = "x" * 300
SETTINGS = [  # what is typed after "ttopt fit"
    ("fitt", "unrecognized arguments: fitt"),
    ("--", "unrecognized arguments: --"),
    ("-v", "unrecognized arguments: -v"),
    ("--=3", "there is no such setting"),
    ("--seed", "--seed: expected one argument"),
    ("--seed=", "--seed: Expected a int"),
    ("--seed one", "--seed: Expected a int. Got value: one"),
    ("--seed 1.5", "--seed: Expected a int. Got value: 1.5"),
    ("--seed true", "--seed: Expected a int. Got value: "),
    ("--seed null", "--seed: Expected a int. Got value: "),
    ("--seed '[1]'", "--seed: Expected a int. Got value: "),
    ("--seed -1", "seed is -1; give 0 or more"),
    (f"--seed {'9' * 5000}", "--seed: "),
    ("--sead 1", "--sead: there is no such setting; the nearest is --seed"),
    ("--teacher.frmes 9", "--teacher.frmes: there is no such setting; the nearest is --teacher.frames"),
    ("--tau 0.1", "--tau: there is no such setting; the nearest is --optimisation.tau"),
    ("--optimization.steps=3", "the nearest is --optimisation.steps"),
    ("--teacher.model.size 4", "there is no such setting; the nearest is --teacher.model"),
    ("--config", "--config: expected one argument"),
    ("--config=", "--config : no such configuration; there are .. mini"),
    ("--config maxi", "--config maxi: no such configuration; there are .. mini .. or give a YAML file"),
    ("--config no/such.yaml", "--config no/such.yaml: there is no such file"),
    (f"--config {LONG}.yaml", "File name too long; give another path"),
    ("--config ..", "--config ..: "),
    ("--teacher '{frmes: 3}'", "Group 'teacher' does not accept option 'frmes'"),
    ("--teacher 5", "--teacher: Unable to load config '5'"),
    ("--limit 0", "limit is 0; give --limit 1 or more"),
    ("--limit -3", "limit is -3; give --limit 1 or more"),
    ("--limit many", "--limit: Expected a int. Got value: many"),
    ("--batch-samples 0", "batch_samples is 0; give 1 or more"),
    ("--batch-samples 2 --method.path ttopt.methods.Single", "but only ttopt.methods.TeacherLora .. give 1"),
    ("--batch-samples 2 --engine ray", "a worker of the engine ray takes one sample at a time; give 1, and several"),
    ("--engine slurm", "--engine: Expected "),
    ("--address 10.0.0.1:6379", "address is 10.0.0.1:6379, but the engine is in_process; give --engine ray too"),
    ("--engine ray --address 10.0.0.1", "address is neither host:port nor auto; give the head of a Ray cluster"),
    ("--engine ray --address ray://me:secret@head:1", "address is neither host:port nor auto; give the head of a Ray"),
    ("--workers.count 0", "workers.count is 0; give 1 or more, or null"),
    ("--workers.gpus 1.5", "workers.gpus is 1.5; give a part of one such as 0.5, or a whole number"),
    ("--workers.cpus 0", "workers.cpus is 0.0; give CPU cores of each"),
    ("--workers.retries -1", "workers.retries is -1; give 0 or more"),
    ("--batch-samples 2 --optimisation.denoise_step all", "batch_samples needs optimisation.denoise_step first"),
    ("--dataset kinetics", "--dataset: Expected a Literal['miniworld',"),
    ("--dataset vbvr", "dataset vbvr needs its files; give their folder as --root"),
    ("--dataset folder --root nowhere", "root nowhere does not exist; give the folder of the data set"),
    (f"--dataset folder --root {LONG}", "File name too long; give another path"),
    ("--split test", "--split: Expected a Literal['id',"),
    ("--split all", "unknown miniworld split 'all'; choose id"),
    ("--families move", "--families: Expected a list[str]. Got value: move"),
    ("--families '[]'", "families is empty; name some"),
    ("--families '[move,move]'", "families names one twice: ['move', 'move']; name each once"),
    ("--families '[juggle]'", "unknown miniworld family 'juggle'; choose from move"),
    ("--run-dir thesis", "thesis is not empty and no run's folder (it has no config.yaml); give another --run-dir"),
    ("--run-dir /dev/null/x", "cannot write to /dev/null/x (Not a directory); give a --run-dir that can be written"),
    (f"--run-dir {LONG}", "(File name too long); give a --run-dir that can be written"),
    ("--sample.image x.png", "sample.image is x.png, but there is no prompt; say what should happen"),
    ("--sample.queries.process '[is it whole?]'", "process is given without a goal query; give"),
    ("--sample.queries.goal 'is it?'", "sample.queries.process has 0 questions; give one to three"),
    ("--sample.queries.goal a? --sample.queries.process '[a?,b?,c?,d?]'", "has 4 questions; give one to three"),
    ("--sample.queries.goal a? --sample.queries.process '[\"\"]'", "queries need a goal and 1 to 3 process questions"),
    ("--sample.queries.goal a? --sample.queries.process '[null]'", "--sample.queries.process"),
    ("--sample.multiple 0", "sample.multiple is 0; give 32"),
    ("--reasoner.dtype float64", "--reasoner.dtype: Expected a Literal['float32',"),
    ("--reasoner.sigmas '[]'", "reasoner.sigmas is []; give falling noise levels"),
    ("--reasoner.sigmas '[0.9,0.5]'", "reasoner.sigmas is [0.9, 0.5]; give falling"),
    ("--reasoner.sigmas '[1,0.5,0.5]'", "reasoner.sigmas is [1.0, 0.5, 0.5]; give falling"),
    ("--reasoner.sigmas '[1,0.5,0]'", "reasoner.sigmas is [1.0, 0.5, 0.0]; give falling"),
    ("--reasoner.sigmas '[1,.nan,0.5]'", "reasoner.sigmas is [1.0, nan, 0.5]; give "),
    ("--reasoner.sigmas 1", "--reasoner.sigmas: Expected a list. Got value: 1"),
    ("--reasoner.renoise maybe", "--reasoner.renoise: Expected a bool. Got value: maybe"),
    ("--decoder.kind heavy", "--decoder.kind: Expected a Literal['light', 'standard']"),
    ("--decoder.shrink -1", "decoder.shrink is -1 for the standard decoder; give 0 to 3"),
    ("--decoder.shrink 1", "decoder.shrink is 1 for the standard decoder; give 0 to 3, and --decoder.kind light"),
    ("--teacher.frames 0", "teacher.frames is 0; give 1 or more"),
    ("--teacher.frames 10", "the videos of miniworld have only 9 frames; give --teacher.frames 9 or fewer"),
    ("--teacher.answers '[]'", "teacher.answers is []; give one answer or more"),
    ("--teacher.answers '[\" \"]'", "teacher.answers is [' ']; give one answer or more"),
    ("--adapter.rank 0", "adapter.rank is 0; give 1 or more"),
    ("--adapter.alpha 0", "adapter.alpha is 0.0; give a positive number, or null for alpha = rank"),
    ("--adapter.alpha -1", "adapter.alpha is -1.0; give a positive number"),
    ("--adapter.alpha .nan", "adapter.alpha is nan; give a "),
    ("--adapter.targets everything", "--adapter.targets: Expected a Literal['attention',"),
    ("--optimisation.steps 0", "optimisation.steps is 0; give 1 or more"),
    ("--optimisation.lr 0", "optimisation.lr is 0.0; give a positive learning rate such as 5e-5"),
    ("--optimisation.lr=-1e-3", "optimisation.lr is -0.001; give a positive"),
    ("--optimisation.lr nan", "--optimisation.lr: Expected a float. Got value: nan"),
    ("--optimisation.lr .inf", "optimisation.lr is inf; give a finite number"),
    ("--optimisation.tau -0.1", "optimisation.tau is -0.1, but a loss is never below 0; give 0.22"),
    ("--optimisation.tau .inf", "optimisation.tau is inf; give a finite number"),
    ("--optimisation.goal_weight 1.1", "optimisation.goal_weight is 1.1; give a number from 0 to 1"),
    ("--optimisation.goal_weight .nan", "optimisation.goal_weight is nan; give a "),
    ("--optimisation.denoise_step 2", "--optimisation.denoise_step: Expected a Literal['first',"),
    ("--optimisation.clip_norm 0", "optimisation.clip_norm is 0.0; give a positive number such as 1"),
    ("--optimisation.clip_norm .nan", "optimisation.clip_norm is nan; give a "),
    ("--memory.least_similarity 2", "memory.least_similarity is 2.0; give a cosine from -1 to 1"),
    ("--memory.add false --memory.folder nowhere", "memory.folder nowhere does not exist; give the folder of a bank"),
    ("--optimisation.weight_decay -1", "optimisation.weight_decay is -1.0; give 0 or more"),
    ("--optimisation.starts 0", "optimisation.starts is 0; give 1 or more"),
    ("--optimisation.keep first", "--optimisation.keep: Expected a Literal['last',"),
    ("--logging.previews_every -1", "logging.previews_every is below 0; give 0 for no previews"),
    ("--logging.wandb on", "--logging.wandb: Expected a Literal['auto',"),
    ("--chat.backend gemini", "--chat.backend: Expected a Literal['teacher',"),
    ("--chat.backend openai", "chat.model is 'embedded', but chat.backend is openai; give the server's"),
    ("--chat.backend openai --chat.model m", "chat.key_env: the environment variable OPENAI_API_KEY is not set; put"),
    ("--chat.backend openai --chat.model m --chat.base_url here", "chat.base_url 'here' is no address; give e.g."),
    ("--chat.timeout 0", "chat.timeout is 0.0; give seconds, e.g. 120"),
    ("--chat.timeout .inf", "chat.timeout is inf; give a finite number"),
    ("--chat.max_retries -1", "chat.max_retries is -1; give 0 or more"),
    ("--chat.max_tokens 0", "chat.max_tokens is 0; give e.g. 1024"),
    ("--chat.requests_per_minute 0", "chat.requests_per_minute is 0.0; give a positive number, or null for no limit"),
    ("--chat.temperature -1", "chat.temperature is -1.0; give 0 or more, e.g. 0.2"),
    ("--chat.temperature .nan", "chat.temperature is nan; give a finite number"),
    ("--chat.price_in -1", "chat.price_in is -1.0; give 0 or more"),
    ("--chat.price_out -1", "chat.price_out is -1.0; give 0 or more"),
    ("--chat.prompts nowhere", "chat.prompts is 'nowhere', which is no folder; give full, mini, or a folder"),
    (f"--chat.prompts {LONG}", "File name too long; give another path"),
    ("--method.path nowhere.Mine", "method nowhere.Mine cannot be made (No module named 'nowhere'); give the class pa"),
    ("--method.path ''", "method cannot be made .. give the class path of a class with solve"),
    ("--method.path ..x", "method ..x cannot be made .. give the class path"),
    ("--method.path json.dumps", "method json.dumps cannot be made .. give the class path"),
    ("--method.path json.JSONDecoder", "method json.JSONDecoder has no solve(sample, folder, context); give"),
    ("--method.path ttopt.methods.PassAtK --method.arguments.k 0", "k 0, .. give k and shown of 1 or more"),
    ("--method.path ttopt.methods.PassAtK --method.arguments.k 2.5", "k 2.5, .. give k and shown of 1 or more"),
    ("--method.path ttopt.methods.PassAtK --method.arguments.k many", "k many, .. give k and shown of 1 or more"),
    ("--method.path ttopt.methods.PassAtK --method.arguments.n 2", "unexpected keyword argument 'n'); give the class"),
    ("--method.path ttopt.methods.VideoTPO --method.arguments.rounds 1.5", "rounds 1.5, shown 8: give 1 or more"),
    ("--method.path ttopt.methods.SeedEnsemble --method.arguments.seeds 1", "seeds 1, steps 1: give 2 seeds or more"),
    ("--method.path ttopt.methods.SeedEnsemble --method.arguments.seeds 2.5", "seeds 2.5, steps 1: give 2 seeds"),
    ("--method.path ttopt.methods.Existing --method.arguments.videos nowhere", "videos nowhere: there is no such fold"),
    ("--method.path ttopt.methods.Existing --method.arguments.videos 5", "method ttopt.methods.Existing cannot be mad"),
    ("--config collabvr --method.arguments.attempts 0", "method.arguments: attempts: .. greater than 0; there are"),
    ("--config collabvr --method.arguments.keep_above .nan", "method.arguments.keep_above is nan; give a finite numbe"),
    ("--config collabvr --method.arguments.clip_seconds '[0]'", "method.arguments: clip_seconds.0: "),
    ("--config collabvr --method.arguments.frames_per_second .inf", "method.arguments.frames_per_second is inf; give"),
    ("--config collabvr --method.arguments.retries 3", "method.arguments: retries: Extra inputs .. there are max_step"),
    ("--callbacks 5", "--callbacks: Expected a list. Got value: 5"),
    ("--callbacks '[{}]'", "--callbacks: Expected CallbackSettings (see --help). Got value: {}"),
    ("--callbacks '[{path: nowhere.Mine}]'", "callback nowhere.Mine cannot be made .. give the class path of a Lightn"),
    ("--callbacks '[{path: json.JSONDecoder}]'", "callback json.JSONDecoder is no Lightning callback; give the class"),
]  # fmt: skip


@pytest.mark.parametrize("typed, expected", SETTINGS, ids=[typed[:60] for typed, _ in SETTINGS])
def test_settings(typed: str, expected: str, place: Path, capsys: Capture) -> None:
    write(place, {"thesis/chapter.tex": ""})
    refused_untouched(place, ["fit", *shlex.split(typed)], expected, capsys)


YAML: list[tuple[str | bytes, str]] = [  # what is in c.yaml
    ("", "c.yaml must hold settings such as 'seed: 1'; see configs/mini.yaml"),
    ("just words", "c.yaml must hold settings such as 'seed: 1'"),
    ("- seed: 1", "c.yaml must hold settings"),
    ("seed: [1", "c.yaml is not valid YAML: "),
    ("seed: 1\n\tlimit: 2", "c.yaml is not valid YAML: "),
    ("seed: 1\nlimit", "c.yaml is not valid YAML: "),
    ("seed: 1\nlimit: 2\nseed: 3", "c.yaml is not valid YAML: .. seed stands there twice"),
    ("teacher: {frames: 5, frames: 9}", "frames stands there twice"),
    ("seed: 'open", "c.yaml is not valid YAML: "),
    ("seed: *nothing", "c.yaml is not valid YAML: .. undefined alias"),
    ("seed: @1", "c.yaml is not valid YAML: "),
    ("a: 1\n---\nb: 2", "c.yaml is not valid YAML: "),
    ("seed: !!python/object/apply:os.system [ls]", "c.yaml is not valid YAML: could not determine a constructor"),
    ("? [a]\n: 1", "c.yaml is not valid YAML: "),
    (b"\xff\xfe\x00seed: 1", "c.yaml is not valid YAML: "),
    (b"seed: 1\x00", "c.yaml is not valid YAML: "),
    ("teacher: &t {frames: 5, model: *t}", "c.yaml is not valid YAML: .. nested"),
    ("seed: " + "[" * 1500, "c.yaml is not valid YAML: it is nested too deeply"),
    ("seed: " + "9" * 5000, "c.yaml is not valid YAML: Exceeds the limit (4300 digits)"),
    ("1: 2", "c.yaml: 1: there is no such setting"),
    ("null: 2", "c.yaml: None: there is no such setting"),
    ("config: other.yaml", "c.yaml: config: there is no such setting"),
    ("teacher: {frmes: 5}", "c.yaml: teacher.frmes: there is no such setting; the nearest is teacher.frames"),
    ("teachers: {frames: 5}", "c.yaml: teachers: there is no such setting; the nearest is teacher"),
    ("methods: []", "c.yaml: methods: there is no such setting; the nearest is method"),
    ("seed: 2026-11-20", "--seed: Expected a int. Got value: 2026-11-20"),
    ("seed: 2026-99-99", "c.yaml is not valid YAML: month must be"),
    ("seed: '1 2'", "--seed: Expected a int. Got value: 1 2"),
    ("teacher: 5", "c.yaml: teacher is 5; it must hold settings, which --help lists"),
    ("teacher:", "c.yaml: teacher is None; it must hold settings"),
    ("teacher: {frames: }", "teacher.frames is null; give a value, or leave it out"),
    ("teacher: [frames]", "c.yaml: teacher is ['frames']; it must hold settings"),
    ("optimisation: {lr: .nan}", "optimisation.lr is nan; give a "),
    ("optimisation: {lr: -.inf}", "optimisation.lr is -inf; give a "),
    ("optimisation: {weight_decay: .inf}", "optimisation.weight_decay is inf; give a finite number"),
    ("reasoner: {sigmas: [1, x]}", "--reasoner.sigmas: Expected a float. Got value: x"),
    ("reasoner: {compile: 3}", "--reasoner.compile: Expected a bool. Got value: 3"),
    ("sample: {frames: 1.0e+2}", "--sample.frames: Expected a int. Got value: 100.0"),
    ("callbacks: {path: a.B}", "c.yaml: callbacks.path: there is no such setting"),
    ("callbacks: [{path: a.B, every: 2}]", "--callbacks: Option 'every' is not accepted"),
    ("method: {arguments: [1]}", "--method.arguments: Expected a dict. Got value: [1]"),
]  # fmt: skip


@pytest.mark.parametrize("content, expected", YAML, ids=[str(content)[:40] for content, _ in YAML])
def test_configuration_files(content: str | bytes, expected: str, place: Path, capsys: Capture) -> None:
    (place / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["fit", "--config", "c.yaml"], expected, capsys)
    assert contents(place) == {"c.yaml"}


METHOD = "methods: [{name: single, path: ttopt.methods.Single}]"
OTHERS = [  # a whole command; c.yaml holds one method
    ("compare --config c.yaml --only '[loop]'", "only names 'loop', but the methods are single"),
    ("compare --config c.yaml --reference static", "reference is 'static', but the methods are single"),
    ("compare --config c.yaml --method.path a.B", "compare takes its methods from the list methods; leave --method ou"),
    ("compare --config c.yaml --base maxi", "--config maxi: no such configuration; there are"),
    ("compare --config c.yaml --base", "--base: expected one argument"),
    ("compare --config c.yaml --methods '[]'", "methods is empty; name some, as configs/compare.yaml does"),
    ("compare --config m.yaml", "--methods: the following arguments are required: name"),
    ("compare --config c.yaml --methods '[{name: a},{name: A}]'", "the name 'a' is empty or too like another; give ea"),
    ("compare --config c.yaml --methods '[{name: \"..\"}]'", "methods: the name '..' is empty or too like another"),
    ("compare --config c.yaml --methods '[{name: single, settings: {tau: 1}}]'", "method single: tau: there is no suc"),
    ("compare --config c.yaml --methods '[{name: single, settings: {seed: x}}]'", "method single: --seed: Expected a"),
    ("compare --config c.yaml --methods '[{name: single, settings: {optimisation.lr: -1}}]'", "method single: .. lr i"),
    ("compare --config c.yaml --methods '[{name: single, settings: {limit: 9}}]'", "method single: limit .. all metho"),
    ("compare --config c.yaml --methods '[{name: single, settings: {run_dir: x}}]'", "method single: run_dir .. all m"),
    ("compare --config c.yaml --methods '[{name: single, path: nowhere.M}]'", "method nowhere.M cannot be made"),
    ("compare --config c.yaml --run-dir thesis", "thesis is not empty and no comparison's folder; give another --run-"),
    ("compare --config c.yaml --dataset vbvr", "dataset vbvr needs its files; give their folder as --root"),
    ("compare --config b.yaml", "b.yaml: base is 5; give the name of a configuration or a YAML file"),
    ("compare --config deep.yaml", "deep.yaml is not valid YAML: it is nested too deeply"),
    ("evaluate", "videos is empty; give a folder of videos as --videos '[folder]'"),
    ("evaluate --videos '[nowhere]'", "nowhere: there is no such folder; give the one that holds the videos"),
    ("evaluate --videos '[thesis]' --names '[a,b]'", "1 folders of videos, but 2 names; give one each"),
    ("evaluate --videos '[thesis]' --official true", "dataset miniworld has no evaluator of its own; leave --official"),
    ("report", "run_dir is missing; give the folder of a run or a comparison as --run-dir"),
    ("report --run-dir thesis", "thesis is neither a run's nor a comparison's folder; give one as --run-dir"),
    ("report --run-dir nowhere", "nowhere is neither a run's nor a comparison's folder"),
    ("plan --gpu Voodoo2", "--gpu Voodoo2 is not in the table; give one of"),
    ("plan --samples many", "argument --samples: invalid int value: 'many'"),
    ("plan --samples 0", "--samples is 0; give 1 to 1,000,000"),
    ("plan --samples 1000001", "--samples is 1000001; give 1 to 1,000,000"),
    ("plan --gpus 8 0", "--gpus is 0; give 1 to 1,000,000"),
    ("plan --gpus -8", "--gpus is -8; give 1 to 1,000,000"),
    ("plan --gpus 9999999", "--gpus is 9999999; give 1 to 1,000,000"),
    ("plan --gpus all", "argument --gpus: invalid int value: 'all'"),
    ("plan --gpus 8 --steps-from nowhere", "nowhere holds no finished sample that was optimised; give the folder of a"),
    ("plan --gpus 8 --steps-from thesis", "thesis holds no finished sample that was optimised"),
    ("plan --gpus 8 --steps-from broken", "broken/samples/a/result.json cannot be read .. remove broken/samples/a"),
    ("plan --gpus 8 --steps-from thesis --mean-steps 3", "--mean-steps and --steps-from both say .. give one"),
    ("plan --gpus 8 --seconds measured", "--seconds measured needs the run .. give it as --steps-from"),
    ("plan --gpus 8 --seconds guessed", "argument --seconds: invalid choice: 'guessed'"),
    ("plan --gpus 8 --start-seconds inf", "--start-seconds is inf; give 0 or more"),
    ("plan --gpus 8 --slow-share 2", "--slow-share is 2.0; give 0 to 1"),
    ("plan --gpus 8 --slow-factor 0.5", "--slow-factor is 0.5; give 1 or more"),
    ("plan --gpus 8 --failure-hours 0", "--failure-hours is 0.0; give more than 0, or inf for never"),
    ("plan --gpus 8 --failure-hours nan", "--failure-hours is nan; give more than 0"),
    ("plan --gpus 8 --gpu-price -2", "--gpu-price is -2.0; give 0 or more"),
    ("plan --mean-steps nan", "--mean-steps is nan; give 0 or more"),
    ("plan --kwh-price -1", "--kwh-price is -1.0; give 0 or more"),
    ("plan --tau 1", "--tau: there is no such setting; the nearest is --optimisation.tau"),
    ("bench --size 7b", "argument --size: invalid choice: '7b'"),
    ("bench --steps 0", "--steps is 0; give 1 or more"),
    ("bench --ways nothing", "--ways nothing matches no row; there are plain"),
    ("bench --ways '['", "--ways [ is no regular expression"),
    ("bench --seed 1", "unrecognized arguments: --seed 1"),
    ("fitt", "'fitt' is no command; the nearest is fit (--help lists all)"),
]  # fmt: skip


@pytest.mark.parametrize("typed, expected", OTHERS, ids=[typed[:70] for typed, _ in OTHERS])
def test_other_commands(typed: str, expected: str, place: Path, capsys: Capture) -> None:
    write(place, {"thesis/chapter.tex": "", "broken/samples/a/result.json": "{"})
    (place / "c.yaml").write_text(METHOD)
    (place / "m.yaml").write_text("methods: [{path: a.B}]")
    (place / "b.yaml").write_text(f"base: 5\n{METHOD}")
    (place / "deep.yaml").write_text("base: " + "[" * 1500)
    refused_untouched(place, shlex.split(typed), expected, capsys)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@FEW
@given(name=st.sampled_from([name for name in setting_names() if name != "run_dir"]), value=JSON, in_file=st.booleans())
def test_any_value_of_any_setting(place: Path, name: str, value: Any, in_file: bool) -> None:
    """Settings, or one sentence; never anything else."""
    nested = value
    for part in reversed(name.split(".")):
        nested = {part: nested}
    (place / "c.yaml").write_text(json.dumps(nested))
    try:
        settings = parse_fit(["--config", "c.yaml"] if in_file else [f"--{name}", json.dumps(value)])
    except UserError as error:
        one_sentence(str(error), "")
    else:
        assert isinstance(settings, FitSettings)


# Samples: one's own

OWN = [  # what is typed after "ttopt fit --sample.prompt go"
    ("--sample.prompt ''", "sample.prompt is empty; say what should happen: --sample.prompt"),
    ("--sample.prompt ' \n\t'", "sample.prompt is empty; say what should happen"),
    ("--sample.prompt 'go \udcff'", "sample sample: the prompt 'go \\udcff' is no UTF-8; write it anew"),
    ("--sample.image missing.png", "image missing.png: there is no such file; check --sample.image"),
    ("--sample.image empty.png", "image empty.png is empty; give a PNG or JPEG file"),
    ("--sample.image text.png", "image text.png cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image vector.svg", "image vector.svg cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image cut.png", "image cut.png cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image cut.jpg", "image cut.jpg cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image signature.png", "image signature.png cannot be read as an image"),
    ("--sample.image damaged.png", "image damaged.png cannot be read as an image"),
    ("--sample.image bomb.png", "image bomb.png cannot be read as an image; give a PNG or JPEG file"),
    ("--sample.image folder.png", "image folder.png: there is no such file; check --sample.image"),
    ("--sample.image dangling.png", "image dangling.png: there is no such file; check --sample.image"),
    ("--sample.image circle.png", "image circle.png: there is no such file; check --sample.image"),
    ("--sample.image pipe.png", "image pipe.png: there is no such file; check --sample.image"),
    (f"--sample.image {LONG}.png", "File name too long; give another path"),
    ("--sample.image http://example.org/a.png", "image http:/example.org/a.png: there is no such file"),
    ("--sample.id ''", "sample id '' cannot name a folder: use 1-120 letters"),
    ("--sample.id '..'", "sample id '..' cannot name a folder"),
    ("--sample.id a/b", "sample id 'a/b' cannot name a folder"),
    ("--sample.id 'a b'", "sample id 'a b' cannot name a folder"),
    ("--sample.id -a", "--sample.id: expected one argument"),
    (f"--sample.id {LONG}", "cannot name a folder: use 1-120 letters"),
    ("--sample.frames 0", "sample.frames is 0; give 4k+1 frames"),
    ("--sample.frames -3", "sample.frames is -3; give 4k+1 frames"),
    ("--sample.frames 10", "sample sample: 10 frames; Wan videos have 4k+1 frames (5, 9, ... 81, 89)"),
    ("--sample.frames 4000000001", "sample sample: 4000000001 frames; Wan videos"),
    ("--sample.frames 5", "teacher.frames is 9, but the video has only 5 frames; give --teacher.frames 5 or fewer"),
    ("--sample.fps 0", "sample.fps is 0; give frames a second, e.g. 16"),
    ("--sample.fps 24.5", "--sample.fps: Expected a int. Got value: 24.5"),
    ("--sample.fps 1000000", "sample sample: 1000000 frames a second; give 1 to 1000"),
    ("--sample.height 0", "sample.height is 0; give pixels, e.g. 480"),
    ("--sample.width -48", "sample.width is -48; give pixels, e.g. 832"),
    ("--sample.width 1000000 --sample.image small.png", "1000000x48 pixels; give a width and height of 1 to 8192"),
]  # fmt: skip


def png(width: int = 8, height: int = 8) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((width, height), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def pictures(place: Path) -> Path:
    """Files that are, or only seem to be, images."""
    content = png(64, 64)
    jpeg = io.BytesIO()
    Image.open(io.BytesIO(content)).save(jpeg, "JPEG")
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    files = {
        "small.png": png(), "empty.png": b"", "text.png": b"not an image", "vector.svg": b"<svg/>",
        "cut.png": content[:-200], "cut.jpg": jpeg.getvalue()[:400], "signature.png": content[:8],
        "damaged.png": content[:40] + b"\0" * 40 + content[80:], "bomb.png": content[:8] + chunk,
    }  # fmt: skip
    for name, data in files.items():
        (place / name).write_bytes(data)
    (place / "folder.png").mkdir()
    (place / "dangling.png").symlink_to("nowhere")
    (place / "circle.png").symlink_to("circle.png")
    os.mkfifo(place / "pipe.png")
    return place


@pytest.mark.parametrize(
    "typed, expected", OWN, ids=[typed[:60].encode("ascii", "replace").decode() for typed, _ in OWN]
)
def test_own_sample(typed: str, expected: str, pictures: Path, capsys: Capture) -> None:
    refused_untouched(pictures, ["fit", "--sample.prompt", "go", *shlex.split(typed)], expected, capsys)


# Samples: data sets

Files = dict[str, str | bytes]
PNG = png()
PAIR: Files = {"a.png": PNG, "a.txt": "go"}
FOLDERS: list[tuple[Files, str]] = [  # a folder of images and prompts
    ({}, "data holds no prompts; write one into a .txt file beside each image"),
    ({"a.csv": "go"}, "data holds no prompts"),
    ({"a.png": PNG}, "data/a.png has no prompt; write it into data/a.txt"),
    (PAIR | {"b.jpg": PNG}, "data/b.jpg has no prompt; write it into data/b.txt"),
    ({"a.txt": ""}, "sample a: the prompt is empty"),
    ({"a.txt": b"\xff\xfe go"}, "data/a.txt is no UTF-8 text; write it anew"),
    (PAIR | {"a.png": b""}, "image data/a.png cannot be read; fetch the data set again"),
    (PAIR | {"a.png": PNG[:60]}, "image data/a.png cannot be read"),
    (PAIR | {"a.png": b"<svg/>"}, "image data/a.png cannot be read"),
    ({"my photo.png": PNG, "my photo.txt": "go"}, "sample id 'my photo' cannot name a folder"),
    ({".txt": "go"}, "sample id '.txt' cannot name a folder"),
    ({"con.txt": "go"}, "sample id 'con' cannot name a folder: use .. no name that Windows keeps for itself"),
    ({"a.txt": "go", "A.txt": "come"}, "the samples A and a would share a folder; give each its own name"),
]
LINES: list[tuple[str | bytes, str]] = [  # a .jsonl file
    ("", "dataset folder: data.jsonl holds no samples; check --root"),
    ("{", "data.jsonl, line 1: Expecting property name"),
    ('{"prompt": "go"}\n\n{"prompt":', "data.jsonl, line 3: Expecting value"),
    ("null", "data.jsonl must hold JSON objects, one a sample"),
    ('["go"]', "data.jsonl must hold JSON objects, one a sample"),
    ('{"prompt": "go"} {"prompt": "come"}', "data.jsonl, line 1: Extra data"),
    (b'{"prompt": "\xff"}', "data.jsonl cannot be read ('utf-8' codec"),
    ("[" * 100_000, "data.jsonl, line 1: it is nested too deeply"),
    ('{"pormpt": "go"}', "data.jsonl, record 1: prompt: Field required"),
    ('{"prompt": ""}', "sample 00001: the prompt is empty"),
    ('{"prompt": null}', "data.jsonl, record 1: prompt: Input should be a valid string"),
    ('{"prompt": 3}', "data.jsonl, record 1: prompt: Input should be a valid string"),
    ('{"prompt": ["go"]}', "data.jsonl, record 1: prompt: Input should be a valid string"),
    ('{"prompt": "\\ud800"}', "sample 00001: the prompt '\\ud800' is no UTF-8; write it anew"),
    ('{"prompt": "go", "frames": 10}', "sample 00001: 10 frames; Wan videos have 4k+1 frames"),
    ('{"prompt": "go", "frames": 9.7}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": "9"}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": true}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": NaN}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": 1e999}', "record 1: frames: Input should be a valid integer"),
    ('{"prompt": "go", "frames": -3}', "sample 00001: -3 frames; Wan videos"),
    ('{"prompt": "go", "frames": ' + "9" * 5000 + "}", "data.jsonl, line 1: Exceeds the limit (4300 digits)"),
    ('{"prompt": "go", "fps": 0}', "sample 00001: 0 frames a second; give 1 to 1000"),
    ('{"prompt": "go", "fps": {}}', "record 1: fps: Input should be a valid integer"),
    ('{"prompt": "go", "id": "../../x"}', "sample id '../../x' cannot name a folder"),
    ('{"prompt": "go", "id": "a\\u0000"}', "sample id 'a\\x00' cannot name a folder"),
    ('{"prompt": "go", "id": {"a": 1}}', "record 1: id: Input should be a valid string"),
    ('{"prompt": "go", "id": true}', "record 1: id: Input should be a valid string"),
    ('{"prompt": "go", "id": 1}\n{"prompt": "go", "id": "1"}', "data.jsonl has two samples called '1'; give each"),
    ('{"prompt": "go", "image": 5}', "record 1: image: Input should be a valid string"),
    ('{"prompt": "go", "image": "no.png"}', "image no.png: there is no such file; check --root"),
    ('{"prompt": "go", "image": "a\\u0000.png"}', "image a .png: there is no such file; check --root"),
    ('{"prompt": "go", "family": ["f"]}', "record 1: family: Input should be a valid string"),
]
TASK = "In-Domain_50/T-1_move_data-generator/00000"
VBVR: Files = {f"{TASK}/first_frame.png": PNG, f"{TASK}/prompt.txt": "go"}
RULER = {"prompt": "go", "index": 1, "task_name": "t", "category": "c", "checklist": [{"Rule Coherence": "is it?"}]}
GENVIRE = {"main_category": "m", "sub_category": "s", "id": 1, "i2v_prompt": "go", "image": "a.png"}


def ruler(**changes: Any) -> tuple[str, Files]:
    return "ruler", {"data.jsonl": json.dumps(RULER | changes), "a.png": PNG}


def genvire(**changes: Any) -> tuple[str, Files]:
    return "genvire", {"samples.json": json.dumps([GENVIRE | changes]), "a.png": PNG}


BENCHMARKS: list[tuple[tuple[str, Files], str]] = [
    (("vbvr", {}), "data/In-Domain_50 is missing; --root must be a copy of Video-Reason/VBVR-Bench-Data"),
    (("vbvr", {"In-Domain_50/x": ""}), "data holds no samples; --root must be a copy of"),
    (("vbvr", {f"{TASK}/first_frame.png": PNG}), f"data/{TASK}/prompt.txt is missing; fetch the data set again"),
    (("vbvr", {f"{TASK}/prompt.txt": "go"}), f"image data/{TASK}/first_frame.png: there is no such file"),
    (("vbvr", VBVR | {f"{TASK}/prompt.txt": b"\xff"}), "prompt.txt is no UTF-8 text; write it anew"),
    (("vbvr", VBVR | {f"{TASK}/prompt.txt": ""}), "the prompt is empty"),
    (("vbvr", VBVR | {f"{TASK}/ground_truth.mp4": "no"}), "ground_truth.mp4 cannot be read as a video; fetch"),
    (("ruler", {}), "data/data.jsonl cannot be read .. check --root"),
    (("ruler", {"data.jsonl": ""}), "dataset ruler: data holds no samples; check --root"),
    (ruler(prompt=3), "t.1: prompt is 3, which is no text; fetch the data set again"),
    (ruler(prompt=None), "t.1: the field 'prompt' is missing; fetch the data set again, or check --root"),
    (ruler(category=""), "data/data.jsonl, record 1: the field 'category' is missing"),
    (ruler(index=None), "t: the field 'index' is missing"),
    (ruler(task_name="x" * 200), "cannot name a folder"),
    (ruler(checklist=5), "data.jsonl, record 1: the checklist must be a list of {metric: question}"),
    (ruler(checklist=[{"Beauty": "is it?"}]), "the checklist must be a list of {metric: question}; metrics: Instr"),
    (ruler(checklist="x("), "data.jsonl, record 1: the checklist cannot be read; fetch the data set again"),
    (ruler(checklist="[" * 5000), "data.jsonl, record 1: the checklist cannot be read"),
    (ruler(input_image_path=5), "image data/5: there is no such file; check --root"),
    (ruler(input_image_path="../a.png"), "../a.png lies outside data; check the data set"),
    (ruler(input_image_path="a\0b"), "'a\\x00b' in the data set data cannot name a file (embedded null byte)"),
    (("genvire", {"samples.json": "[]"}), "data has no .json, .jsonl or .parquet file of samples with i2v_prompt"),
    (("genvire", {"samples.parquet": "PAR1"}), "data has no .json, .jsonl or .parquet file of samples"),
    (genvire(i2v_prompt=["go"]), "m.s.1: i2v_prompt is ['go'], which is no text; fetch the data set again"),
    (genvire(image={"bytes": "x"}), "m.s.1: the image's bytes are none; fetch the data set again"),
    (genvire(image=5), "image data/5: there is no such file"),
    (genvire(image="/etc/hostname"), "/etc/hostname lies outside data; check the data set"),
    (genvire(main_category=None), "data: the field 'main_category' is missing"),
]


def write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


@pytest.mark.parametrize(
    "dataset, files, expected",
    [
        *(("folder", files, expected) for files, expected in FOLDERS),
        *(("folder", {"data.jsonl": content}, expected) for content, expected in LINES),
        *((*which, expected) for which, expected in BENCHMARKS),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_data_sets(dataset: str, files: Files, expected: str, place: Path, capsys: Capture) -> None:
    alone = dataset == "folder" and list(files) == ["data.jsonl"]
    (place / "data").mkdir()
    write(place if alone else place / "data", files)
    root = "data.jsonl" if alone else "data"
    refused_untouched(place, ["fit", "--dataset", dataset, "--root", root, "--teacher.frames", "5"], expected, capsys)


@FEW
@given(name=st.text(st.characters(codec="utf-8"), max_size=130) | st.text("aZ09._-/\\:~\u2044\u2215\uff0f", max_size=9))
def test_any_id_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    """A name of one folder, on every file system; or one sentence."""
    try:
        sample = Sample(name, "go", None, 9, 8, 48, 48)
    except UserError as error:
        one_sentence(str(error), "cannot name a folder")
    else:
        assert (tmp_path / sample.id).resolve().parent == tmp_path.resolve()
        assert re.fullmatch(r"[\w.-]+", sample.id, re.ASCII) and sample.id[0] not in ".-" and sample.id[-1] != "."


@FEW
@given(row=st.dictionaries(st.sampled_from(["prompt", "id", "image", "frames", "fps", "family"]), JSON))
def test_any_line(place: Path, row: dict[str, Any]) -> None:
    """A sample, or one sentence."""
    (place / "data.jsonl").write_text(json.dumps({"prompt": "go"} | row))
    wanted = FitSettings(dataset="folder", root="data.jsonl", teacher=TeacherSettings(frames=1))
    try:
        samples, _ = engine.find_samples(wanted)
    except UserError as error:
        one_sentence(str(error), "")
    else:
        assert len(samples) == 1


# Weights


def gone(file: Path) -> None:
    file.unlink()


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def noise(file: Path) -> None:
    file.write_bytes(b"\x80\x02" + bytes(range(256)) * 8)


def pickled(file: Path) -> None:
    """What older downloads hold instead of safetensors."""
    torch.save(tensors(file.read_bytes()), file.with_name("pytorch_model.bin"))
    torch.save(tensors(file.read_bytes()), file.with_name("diffusion_pytorch_model.bin"))
    file.unlink()


def disguised(file: Path) -> None:
    """A pickle that is called safetensors."""
    torch.save(tensors(file.read_bytes()), file)


def lacking(file: Path) -> None:
    save_file(dict(list(tensors(file.read_bytes()).items())[1:]), file, {"format": "pt"})


def reshaped(file: Path) -> None:
    save_file(
        {name: value[..., :1].contiguous() for name, value in tensors(file.read_bytes()).items()},
        file,
        {"format": "pt"},
    )


def foreign(file: Path) -> None:
    save_file({"weight": torch.zeros(2)}, file, {"format": "pt"})


def no_json(file: Path) -> None:
    file.write_text("{")


def a_list(file: Path) -> None:
    file.write_text("[]")


def key(name: str, value: Any) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))

    change.__name__ = f"{name}={value}"
    return change


TRANSFORMER, VAE = (f"{part}/diffusion_pytorch_model.safetensors" for part in ("transformer", "vae"))
TEXT, LIGHT = "text_encoder/model.safetensors", "model.safetensors"
WEIGHTS: list[tuple[str, str, Callable[[Path], None], str]] = [  # which model, which file, what is wrong with it
    ("reasoner", TRANSFORMER, gone, "transformer/diffusion_pytorch_model.safetensors is missing; is the download"),
    ("reasoner", TRANSFORMER, empty, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, cut, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, noise, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, pickled, "transformer/diffusion_pytorch_model.safetensors is missing"),
    ("reasoner", TRANSFORMER, disguised, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, lacking, "reasoner: .. transformer .. is missing from the weights; fetch them again"),
    ("reasoner", TRANSFORMER, reshaped, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", TRANSFORMER, foreign, "reasoner: .. transformer .. is missing from the weights; fetch them again"),
    ("reasoner", "transformer/config.json", gone, "transformer/config.json is missing; give a folder in the diffusers"),
    ("reasoner", "transformer/config.json", empty, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", no_json, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", a_list, "reasoner: .. transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", key("num_layers", 99), "is missing from the weights; fetch them again"),
    ("reasoner", "transformer/config.json", key("num_layers", "x"), "transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", key("in_channels", 7), "transformer cannot be loaded .. fetch it again"),
    ("reasoner", "transformer/config.json", key("_class_name", "UNet2DModel"), "is a UNet2DModel, not a WanTransf"),
    ("reasoner", VAE, gone, "vae/diffusion_pytorch_model.safetensors is missing; is the download complete?"),
    ("reasoner", VAE, cut, "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", VAE, pickled, "vae/diffusion_pytorch_model.safetensors is missing"),
    ("reasoner", VAE, lacking, "reasoner: .. vae .. is missing from the weights; fetch them again"),
    ("reasoner", VAE, reshaped, "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", "vae/config.json", no_json, "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", "vae/config.json", key("z_dim", 15), "reasoner: .. vae cannot be loaded .. fetch it again"),
    ("reasoner", "vae/config.json", key("latents_mean", [0.0]), "vae/config.json: latents_mean has 1 numbers .. fetch"),
    ("reasoner", "vae/config.json", key("_class_name", "AutoencoderKL"), "is a AutoencoderKL, not a AutoencoderKLWan"),
    ("reasoner", TEXT, gone, "text_encoder/model.safetensors is missing; is the download complete?"),
    ("reasoner", TEXT, cut, "reasoner: .. text_encoder cannot be loaded .. fetch it again"),
    ("reasoner", TEXT, pickled, "text_encoder/model.safetensors is missing"),
    ("reasoner", TEXT, lacking, "reasoner: .. text_encoder .. is missing from the weights; fetch them again"),
    ("reasoner", TEXT, reshaped, "reasoner: .. text_encoder cannot be loaded .. fetch it again"),
    ("reasoner", "text_encoder/config.json", no_json, "reasoner: .. text_encoder cannot be loaded .. fetch it again"),
    ("reasoner", "text_encoder/config.json", key("model_type", "bert"), "is a bert, not a UMT5EncoderModel; give"),
    ("reasoner", "tokenizer/tokenizer.json", gone, "tokenizer/tokenizer.json is missing; is the download complete?"),
    ("reasoner", "tokenizer/tokenizer.json", no_json, "reasoner: .. tokenizer cannot be loaded .. fetch it again"),
    ("reasoner", "tokenizer/tokenizer.json", a_list, "reasoner: .. tokenizer cannot be loaded .. fetch it again"),
    ("reasoner", "tokenizer/tokenizer_config.json", no_json, "reasoner: .. tokenizer cannot be loaded .. fetch it"),
    ("light", LIGHT, gone, "model.safetensors is missing; give a folder made by LightDecoder.save or a taew file"),
    ("light", LIGHT, empty, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, cut, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, noise, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, pickled, "model.safetensors is missing"),
    ("light", LIGHT, disguised, "model.safetensors does not hold a TAEHV decoder"),
    ("light", LIGHT, lacking, "model.safetensors does not fit its sizes"),
    ("light", LIGHT, reshaped, "model.safetensors does not fit its sizes"),
    ("light", LIGHT, foreign, "model.safetensors does not fit its sizes"),
    ("light", "config.json", gone, "config.json is missing; it holds the sizes of the weights beside it"),
    ("light", "config.json", no_json, "does not hold a TAEHV decoder"),
    ("light", "config.json", a_list, "does not hold a TAEHV decoder"),
    ("light", "config.json", key("chanels", 3), "config.json does not hold the sizes of a TAEHV decoder; fetch it"),
    ("light", "config.json", key("channels", [8, 8]), "config.json does not hold the sizes of a TAEHV decoder"),
    ("light", "config.json", key("patch_size", -1), "config.json does not hold the sizes of a TAEHV decoder"),
    ("light", "config.json", key("time_upscale", "no"), "config.json does not hold the sizes of a TAEHV decoder"),
    ("teacher", LIGHT, gone, "teacher .. model.safetensors .. fetch it again"),
    ("teacher", LIGHT, empty, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, cut, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, pickled, "teacher .. model.safetensors .. fetch it again"),
    ("teacher", LIGHT, disguised, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, lacking, "is missing from the weights; fetch them again"),
    ("teacher", LIGHT, reshaped, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", LIGHT, foreign, "is missing from the weights; fetch them again"),
    ("teacher", "config.json", gone, "config.json is missing; give a Qwen3-VL model in transformers' layout"),
    ("teacher", "config.json", no_json, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", a_list, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", key("model_type", None), "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", key("model_type", "bert"), "is a 'bert' model, which cannot be a teacher here; use one"),
    ("teacher", "config.json", key("model_type", "none"), "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "config.json", key("vision_config", 5), "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "tokenizer.json", gone, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "tokenizer.json", no_json, "teacher .. cannot be loaded .. fetch it again"),
    ("teacher", "ttopt_prompts.json", no_json, "ttopt_prompts.json: .. it must be a JSON object with any of: question"),
    ("teacher", "ttopt_prompts.json", key("queries", "write"), "ttopt_prompts.json: {prompt} is missing; it must be"),
    ("lora", "lora.safetensors", gone, "no LoRA .. lora.safetensors; give a safetensors file, or owner/name/file"),
    ("lora", "lora.safetensors", empty, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", cut, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", disguised, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", foreign, "lora.safetensors does not fit the model"),
    ("lora", "lora.safetensors", reshaped, "lora.safetensors does not fit the model"),
]  # fmt: skip


def load_part(part: str, folder: Path) -> None:
    if part == "reasoner":
        load_networks(folder, None, "float32", "float32", "cpu")
    elif part == "light":
        LightDecoder.load(folder)
    elif part == "teacher":
        Teacher.load(folder)
    else:
        merge_lora(tiny_transformer(), str(folder / "lora.safetensors"))


@pytest.mark.parametrize(
    "part, file, damage, expected",
    WEIGHTS,
    ids=[f"{part} {file} {damage.__name__}" for part, file, damage, _ in WEIGHTS],
)
def test_weights(
    part: str, file: str, damage: Callable[[Path], None], expected: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    if part == "lora":
        folder.mkdir()
        name = "transformer.blocks.0.attn1.to_q.lora_{}.weight"
        save_file({name.format("A"): torch.zeros(2, 24), name.format("B"): torch.zeros(24, 2)}, folder / file)
    else:
        shutil.copytree(folders[part], folder)
    damage(folder / file)
    with pytest.raises(UserError) as error:
        load_part(part, folder)
    one_sentence(" ".join(str(error.value).split()), expected)


WRONG_MODELS = [  # what is typed after "ttopt fit", with tiny models
    ("--reasoner.model nowhere", "reasoner: no folder nowhere; give a folder in the diffusers layout or a hub id"),
    ("--reasoner.model empty", "empty/transformer/config.json is missing; give a folder in the diffusers layout"),
    ("--reasoner.transformer nowhere", "reasoner: no folder nowhere; give a folder"),
    ("--reasoner.lora no.safetensors", "reasoner: no LoRA no.safetensors; give a safetensors file"),
    ("--reasoner.low_noise_lora no.safetensors", "has no second expert for the LoRA no.safetensors; leave it out"),
    ("--reasoner.device toaster", "reasoner.device is 'toaster', which is no device; give auto, cpu, cuda or cuda:1"),
    ("--reasoner.device cuda:99", "reasoner.device is cuda:99, but torch finds .. GPUs; give cpu or auto"),
    ("--reasoner.device meta", "reasoner.device is 'meta', which is no device; give auto, cpu"),
    ("--teacher.device cpu:x", "teacher.device is 'cpu:x', which is no device; give auto"),
    ("--reasoner.recompute half", "reasoner.recompute is 'half'; give all, none, or a range within 0-2 such as '0-1'"),
    ("--reasoner.attention best", "reasoner.attention best .. give native"),
    ("--reasoner.attention flash_hub", "reasoner.attention flash_hub would run code from the hub; give native"),
    ("--adapter.blocks 2-1", "adapter blocks '2-1' must be 'all' or a range within 0-2, such as '0-1'"),
    ("--decoder.kind light --decoder.model nowhere", "light decoder: nowhere is missing; give a folder made by"),
    ("--decoder.kind light --decoder.shrink 3", "decoder.shrink is 3, but this decoder doubles only 2 times; give tha"),
    ("--teacher.model empty", "empty: config.json is missing; give a Qwen3-VL model in transformers' layout"),
    ("--teacher.answers '[zebra]'", "the teacher's vocabulary lacks a word of 'zebra'; use words it knows"),
]  # fmt: skip


@pytest.fixture
def tiny(folders: dict[str, Path]) -> list[str]:
    return [
        *("--reasoner.model", str(folders["reasoner"]), "--teacher.model", str(folders["teacher"]), "--limit", "1"),
        *("--decoder.kind", "light", "--decoder.model", str(folders["light"]), "--run-dir", "run"),
        *("--sample.queries.goal", GOAL, "--sample.queries.process", json.dumps(PROCESS)),
    ]


@pytest.mark.parametrize("typed, expected", WRONG_MODELS, ids=[typed for typed, _ in WRONG_MODELS])
def test_models(
    typed: str, expected: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "empty").mkdir()
    refused(["fit", *tiny, *shlex.split(typed)], expected, capsys)
    assert contents(tmp_path) <= {"empty", "run", "run/config.yaml", "run/samples", "run/.lock"}


# Replies of a model

QUERIES = '{"goal": "is it there?", "process": ["is it whole?"]}'
PLAN = '{"task_complete": false, "instruction": "go", "estimated_steps_remaining": 1}'
VERDICT = '{"reason": "r", "action_executed": true, "progress": 0.5, "good_fraction": 0.5, "verdict": "reject"}'
ROUTE = '{"action": "regen"}'
ANY = [  # no schema can be found in these
    ("", "there is no JSON object in it"),
    (" \n\t", "there is no JSON object in it"),
    ("\0", "there is no JSON object in it"),
    ("null", "there is no JSON object in it"),
    ("[]", "there is no JSON object in it"),
    ("Yes.", "there is no JSON object in it"),
    ("```json\n```", "there is no JSON object in it"),
    ("<html>502 Bad Gateway</html>", "there is no JSON object in it"),
    ("\ud800", "there is no JSON object in it"),
    ("{", "its JSON is broken: Expecting property name"),
    ("{}", "Field required"),
    ("{'goal': 'single quotes'}", "its JSON is broken"),
    ('{"goal" "process"}', "its JSON is broken"),
    ("{" * 1000, "its JSON is broken"),
    ('{"a": ' * 20_000, "its JSON is nested too deeply"),
    ("[" * 50_000, "there is no JSON object in it"),
    ('{"a": ' + "[" * 50_000, "its JSON is nested too deeply"),
    ("x" * 100_000, "there is no JSON object in it"),
    ('{"a": "' + "x" * 100_000, "its JSON is broken: Unterminated string"),
    ('{"a": ' + "9" * 5000 + "}", "its JSON is broken: a number of 5000 digits"),
    ("<think>" + QUERIES + PLAN + VERDICT + ROUTE, "there is no JSON object in it"),
]
TYPED: list[tuple[type[BaseModel], str, str]] = [
    *((Verdict, reply, problem) for reply, problem in ANY),
    (_Reply, QUERIES[:-1], "its JSON is broken"),
    (_Reply, QUERIES + QUERIES.replace("there", "gone"), "there is more than one JSON object in it, and they differ"),
    (_Reply, '{"goal": "a?", "goal": "b?", "process": ["c?"]}', "goal stands there twice, with different values"),
    (_Reply, '{"goal": "", "process": ["a?"]}', "goal: Value error, a question is empty"),
    (_Reply, '{"goal": " ", "process": ["a?"]}', "goal: Value error, a question is empty"),
    (_Reply, '{"goal": null, "process": ["a?"]}', "goal: Input should be a valid string"),
    (_Reply, '{"goal": 5, "process": ["a?"]}', "goal: Input should be a valid string"),
    (_Reply, '{"goal": ["a?"], "process": ["a?"]}', "goal: Input should be a valid string"),
    (_Reply, '{"goal": "a?"}', "process: Field required"),
    (_Reply, '{"goal": "a?", "process": []}', "process: List should have at least 1 item"),
    (_Reply, '{"goal": "a?", "process": "b?"}', "process: Input should be a valid list"),
    (_Reply, '{"goal": "a?", "process": {"1": "b?"}}', "process: Input should be a valid list"),
    (_Reply, '{"goal": "a?", "process": ["b?", 3]}', "process.1: Input should be a valid string"),
    (_Reply, '{"goal": "a?", "process": ["b?", ""]}', "process.1: Value error, a question is empty"),
    (_Reply, '{"goal": "a?", "process": ["b?", "c?", "d?", "e?"]}', "process: List should have at most 3 items"),
    (Plan, PLAN.replace("false", '"perhaps"'), "task_complete: Input should be a valid boolean"),
    (Plan, PLAN.replace("false", "null"), "task_complete: Input should be a valid boolean"),
    (Plan, PLAN.replace('"go"', '""'), "the instruction is empty although the task is not complete"),
    (Plan, PLAN.replace('"go"', '"  "'), "the instruction is empty although the task is not complete"),
    (Plan, PLAN.replace('"go"', "3"), "instruction: Input should be a valid string"),
    (Plan, PLAN.replace('"go"', '["go"]'), "instruction: Input should be a valid string"),
    (Plan, PLAN.replace(": 1}", ": -1}"), "estimated_steps_remaining: Input should be greater than or equal to 0"),
    (Plan, PLAN.replace(": 1}", ": NaN}"), "estimated_steps_remaining: Input should be a finite number"),
    (Plan, PLAN.replace(": 1}", ": 1e999}"), "estimated_steps_remaining: Input should be a finite number"),
    (Plan, PLAN.replace(": 1}", ": 1.5}"), "estimated_steps_remaining: Input should be a valid integer"),
    (Plan, PLAN.replace(": 1}", ": []}"), "estimated_steps_remaining: Input should be a valid integer"),
    (Plan, PLAN + PLAN.replace("go", "come"), "there is more than one JSON object in it, and they differ"),
    (Verdict, VERDICT.replace('"reject"', '"maybe"'), "verdict: Input should be 'accept' or 'reject'"),
    (Verdict, VERDICT.replace('"reject"', "true"), "verdict: Input should be 'accept' or 'reject'"),
    (Verdict, VERDICT.replace('"reject"', '["accept"]'), "verdict: Input should be 'accept' or 'reject'"),
    (Verdict, VERDICT.replace('"verdict"', '"veredict"'), "verdict: Field required"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": 50'), "progress: Input should be less than or equal to"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": -1'), "progress: Input should be greater than or equal"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": NaN'), "progress: Input should be"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": Infinity'), "progress: Input should be"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": "half"'), "progress: Input should be a valid number"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": null'), "progress: Input should be a valid number"),
    (Verdict, VERDICT.replace('"progress": 0.5', '"progress": {}'), "progress: Input should be a valid number"),
    (Verdict, VERDICT.replace("true", "2"), "action_executed: Input should be a valid boolean"),
    (Verdict, VERDICT.replace('"r"', "null"), "reason: Input should be a valid string"),
    (Verdict, VERDICT.replace('"r"', '"r", "verdict": "accept"'), "verdict stands there twice, with different values"),
    (Verdict, VERDICT + " or " + VERDICT.replace("reject", "accept"), "there is more than one JSON object in it"),
    (Route, '{"action": "retry"}', "action: Input should be 'regen', 'split' or 'fallback'"),
    (Route, '{"action": null}', "action: Input should be 'regen', 'split' or 'fallback'"),
    (Route, '{"action": "split", "estimated_steps": 0}', "estimated_steps: Input should be greater than or equal to 1"),
    (Route, '{"action": "split", "estimated_steps": "some"}', "estimated_steps: Input should be a valid integer"),
    (Route, '{"action": "regen"} {"action": "split"}', "there is more than one JSON object in it, and they differ"),
]  # fmt: skip


class Parrot:
    """Says the same again and again."""

    name = "a parrot"

    def __init__(self, text: str) -> None:
        self.text = text

    def reply(self, messages: Any, schema: type[BaseModel] | None = None) -> Reply:
        return Reply(self.text, 0.0, 1, 1, 0.0, self.name)


@pytest.mark.parametrize(
    "schema, reply, problem", TYPED, ids=[f"{schema.__name__} {reply[:30]!r}" for schema, reply, _ in TYPED]
)
def test_replies(schema: type[BaseModel], reply: str, problem: str) -> None:
    with pytest.raises(ChatError) as error:
        ask(Parrot(reply), [Message("user", ("?",))], schema)
    said = str(error.value)
    one_sentence(said, f"a parrot gave no usable {schema.__name__.lower()}, asked twice: .. {problem} .. its reply: ")
    said.encode()


@pytest.mark.parametrize("reply, problem", ANY, ids=[repr(reply[:30]) for reply, _ in ANY])
def test_questions(reply: str, problem: str, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher that optimises, which is asked without a Chat."""
    monkeypatch.setattr(models.teacher, "reply", lambda *args, **options: reply)
    with pytest.raises(UserError) as error:
        models.teacher.write_queries(tiny_sample(prompt="move the red cross to the green pad"))
    one_sentence(
        str(error.value), f"sample a: the teacher wrote no usable questions, asked twice; .. {problem} .. Give"
    )


@FEW
@given(content=JSON, before=st.text(max_size=20), after=st.text(max_size=20))
@pytest.mark.parametrize("schema, good", [(_Reply, QUERIES), (Plan, PLAN), (Verdict, VERDICT), (Route, ROUTE)])
def test_any_reply(schema: type[BaseModel], good: str, content: Any, before: str, after: str) -> None:
    """One field holds anything, between any words: a typed reply that can be stored, or a ValueError."""
    for name in json.loads(good):
        try:
            found = parse_reply(before + json.dumps(json.loads(good) | {name: content}) + after, schema)
        except ValueError as error:
            assert str(error)
        else:
            found.model_dump_json().encode()


# Folders of earlier runs

RUNS: list[tuple[str, str, str]] = [  # which file, what it holds, what "ttopt report" says
    ("config.yaml", "{", "run/config.yaml is not valid YAML"),
    ("config.yaml", "tau: 1", "run/config.yaml: tau: there is no such setting"),
    ("samples/a/result.json", "", "run/samples/a/result.json cannot be read .. remove run/samples/a to make it anew"),
    ("samples/a/result.json", "{", "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", "[]", "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", "{}", "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", '{"score": 5}', "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", '{"optimisation": []}', "run/samples/a/result.json cannot be read .. remove"),
    ("samples/a/result.json", "[" * 50_000, "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/video.mp4", "no video", "run/samples/a/video.mp4 cannot be read as a video .. remove its folder"),
    ("samples/a/curves.csv", "step,loss\n0,x\n", "run/samples/a/curves.csv cannot be read .. remove its folder"),
    (
        "samples/a/trace.json",
        "{",
        "run/samples/a/trace.json cannot be read .. remove it, or its folder, to make it anew",
    ),
    (
        "samples/a/trace.json",
        "[]",
        "run/samples/a/trace.json cannot be read .. remove it, or its folder, to make it anew",
    ),
]


@pytest.mark.parametrize("file, content, expected", RUNS, ids=[f"{file} {text[:20]}" for file, text, _ in RUNS])
def test_earlier_runs(file: str, content: str, expected: str, place: Path, capsys: Capture) -> None:
    write(place / "run", {"config.yaml": "seed: 1"})
    (place / "run/samples/a").mkdir(parents=True)
    Result(
        sample="a", family="", split="", prompt="go", method="m", accepted=None, stop="", score=None,
        cost=Cost(1, 1, 1, 1), first_frame_ssim=None, seeds={}, seconds={"total": 1.0}, peak_mb={}, device="cpu",
        versions={}, finished="2026-01-01",
    ).save(place / "run/samples/a")  # fmt: skip
    write(place / "run", {file: content})
    refused_untouched(place, ["report", "--run-dir", "run"], expected, capsys)
