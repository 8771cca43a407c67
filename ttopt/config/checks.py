"""Values that no run could use are refused before anything is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

from ttopt.config.settings import EMBEDDED, FitSettings, flat, to_dict
from ttopt.errors import UserError


def check(settings: FitSettings) -> None:
    """Raises UserError for values that no run could use; needs no model and no data."""
    for name, value in flat(to_dict(settings)).items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"{name} is {value}; give a finite number")
    o, sample, r = settings.optimization, settings.sample, settings.reasoner
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
        (
            re.fullmatch(r"[^/\\#?%:]{1,128}", settings.logging.project) is not None,
            f"logging.project is {settings.logging.project!r}",
            "give 1 to 128 characters without / \\ # ? % :",
        ),
        (
            sample.height % 2 == sample.width % 2 == sample.multiple % 2 == 0,
            f"sample.height, width, multiple are {sample.height}, {sample.width}, {sample.multiple}",
            "give even numbers, as H.264 needs",
        ),
        (settings.families != [], "families is empty", "name some, or give --families null for all"),
        (len(set(families)) == len(families), f"families names one twice: {families}", "name each once"),
        (o.tau >= 0, f"optimization.tau is {o.tau}, but a loss is never below 0", "give 0.22, or 0 to use all steps"),
        (o.steps >= 1, f"optimization.steps is {o.steps}", "give 1 or more (base.mp4 is the video of 0 steps)"),
        (o.lr > 0, f"optimization.lr is {o.lr}", "give a positive learning rate such as 5e-5"),
        (0 <= o.goal_weight <= 1, f"optimization.goal_weight is {o.goal_weight}", "give a number from 0 to 1"),
        (o.clip_norm > 0, f"optimization.clip_norm is {o.clip_norm}", "give a positive number such as 1"),
        (o.starts >= 1, f"optimization.starts is {o.starts}", "give 1 or more"),
        (o.weight_decay >= 0, f"optimization.weight_decay is {o.weight_decay}", "give 0 or more"),
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
            -1 <= settings.bank.least_similarity <= 1,
            f"bank.least_similarity is {settings.bank.least_similarity}",
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
            (sigmas == "shifted") == (r.steps is not None) == (r.shift is not None),
            f"reasoner.sigmas is {sigmas}, steps {r.steps} and shift {r.shift}",
            "give sigmas shifted with both, e.g. 20 and 5, or none of them",
        ),
        (r.steps is None or 1 <= r.steps <= 200, f"reasoner.steps is {r.steps}", "give 1 to 200"),
        (r.shift is None or 1 <= r.shift <= 100, f"reasoner.shift is {r.shift}", "give 1 to 100, e.g. 5"),
        (
            not (r.renoise and r.solver != "euler"),
            f"reasoner.renoise is given with solver {r.solver}",
            "give --reasoner.solver euler or --reasoner.renoise false",
        ),
        (r.guidance == 0 or 1 <= r.guidance <= 100, f"reasoner.guidance is {r.guidance}", "give 0, or 1 to 100"),
        (
            not r.negative_prompt or r.guidance > 1,
            "reasoner.negative_prompt is given without guidance",
            "give --reasoner.guidance too, e.g. 5",
        ),
        (
            isinstance(sigmas, str)
            or (bool(sigmas) and sigmas[0] == 1 and sigmas[-1] > 0 and sigmas == sorted(set(sigmas), reverse=True)),
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
    _refuse(rules)


def check_files(settings: FitSettings) -> None:
    """Raises UserError for folders that a run needs and that are not there; its report needs none of them."""
    _refuse(
        [
            (
                settings.root is None or Path(settings.root).exists(),
                f"root {settings.root} does not exist",
                "give the folder of the data set",
            ),
            (
                settings.bank.folder is None or settings.bank.add or Path(settings.bank.folder).is_dir(),
                f"bank.folder {settings.bank.folder} does not exist",
                "give the folder of a bank, or --bank.add true to make one",
            ),
            (
                settings.chat.prompts in {"full", "mini"} or Path(settings.chat.prompts).is_dir(),
                f"chat.prompts is {settings.chat.prompts!r}, which is no folder",
                "give full, mini, or a folder like loop/prompts",
            ),
        ]
    )


def _refuse(rules: Sequence[tuple[bool, str, str]]) -> None:
    for fine, wrong, cure in rules:
        if not fine:
            raise UserError(f"{wrong}; {cure}")
