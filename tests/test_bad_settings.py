"""Settings, commands and folders of earlier runs that are wrong, one line a case."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from bad_input import FEW, JSON, LONG, Capture, contents, one_sentence, refused, refused_untouched, write
from hypothesis import given
from hypothesis import strategies as st

from ttopt.__main__ import main
from ttopt.config.parsing import parse_fit, setting_names
from ttopt.config.settings import FitSettings
from ttopt.errors import UserError
from ttopt.record.result import Cost, Result

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
    ("--tau 0.1", "--tau: there is no such setting; the nearest is --optimization.tau"),
    ("--optimisation.steps=3", "the nearest is --optimization.steps"),
    ("--teacher.model.size 4", "there is no such setting; the nearest is --teacher.model"),
    ("--config", "--config: expected one argument"),
    ("--config=", "--config : no such configuration; there are .. mini"),
    ("--config maxi", "--config maxi: no such configuration; there are .. mini .. or give a YAML file"),
    ("--config no/such.yaml", "--config no/such.yaml: there is no such file"),
    (f"--config {LONG}.yaml", "File name too long; give another path"),
    ("--config ..", "--config ..: "),
    ("--teacher '{frmes: 3}'", "--teacher.frmes: there is no such setting; the nearest is --teacher.frames"),
    ("--teacher 5", "--teacher is 5; it must hold settings, which --help lists"),
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
    ("--dataset kinetics", "--dataset: Expected miniworld, "),
    ("--dataset vbvr", "dataset vbvr needs its files; give their folder as --root"),
    ("--dataset folder --root nowhere", "root nowhere does not exist; give the folder of the data set"),
    (f"--dataset folder --root {LONG}", "File name too long; give another path"),
    ("--split oood", "--split: Expected id, ood, all, train, eval, dev_id or dev_ood. Got value: oood"),
    ("--split all", "unknown split 'all'; choose from id"),
    ("--families mvoe", "unknown family 'mvoe'; choose from move"),
    ("--families '{move: 1}'", "unknown family '{move: 1}'; choose from move"),
    ("--families '[]'", "families is empty; name some"),
    ("--families '[move,move]'", "families names one twice: ['move', 'move']; name each once"),
    ("--families '[juggle]'", "unknown family 'juggle'; choose from move"),
    ("--run-dir thesis", "thesis is not empty and no run's folder (it has no config.yaml); give another --run-dir"),
    ("--run-dir /dev/null/x", "cannot write to /dev/null/x (Not a directory); give a --run-dir that can be written"),
    (f"--run-dir {LONG}", "(File name too long); give a --run-dir that can be written"),
    ("--sample.image x.png", "sample.image is x.png, but there is no prompt; say what should happen"),
    ("--sample.queries.process '[is it whole?]'", "process is given without a goal query; give"),
    ("--sample.queries.goal 'is it?'", "sample.queries.process has 0 questions; give one to three"),
    ("--sample.queries.goal a? --sample.queries.process '[a?,b?,c?,d?]'", "has 4 questions; give one to three"),
    ("--sample.queries.goal 'is it?' --sample.queries.process '[\"\"]'", "queries need a goal and 1 to 3 process"),
    ("--sample.queries.goal a? --sample.queries.process '[null]'", "--sample.queries.process"),
    ("--sample.multiple 0", "sample.multiple is 0; give 32"),
    ("--reasoner.dtype float64", "--reasoner.dtype: Expected float32, "),
    ("--reasoner.sigmas '[]'", "reasoner.sigmas is []; give falling noise levels"),
    ("--reasoner.sigmas '[0.9,0.5]'", "reasoner.sigmas is [0.9, 0.5]; give falling"),
    ("--reasoner.sigmas '[1,0.5,0.5]'", "reasoner.sigmas is [1.0, 0.5, 0.5]; give falling"),
    ("--reasoner.sigmas '[1,0.5,0]'", "reasoner.sigmas is [1.0, 0.5, 0.0]; give falling"),
    ("--reasoner.sigmas '[1,.nan,0.5]'", "reasoner.sigmas is [1.0, nan, 0.5]; give "),
    ("--reasoner.sigmas 1", "--reasoner.sigmas: Expected a list of floats or one of 'turbo', .. Got value: 1"),
    ("--reasoner.sigmas best", "--reasoner.sigmas: Expected a list of floats or one of 'turbo', .. Got value: best"),
    ("--reasoner.sigmas shifted", "reasoner.sigmas is shifted, steps None and shift None; give sigmas shifted with"),
    ("--reasoner.steps 20 --reasoner.shift 5", "steps 20 and shift 5.0; give sigmas shifted with both, e.g. 20 and 5"),
    ("--reasoner.sigmas shifted --reasoner.shift 5 --reasoner.steps 0", "reasoner.steps is 0; give 1 to 200"),
    ("--reasoner.sigmas shifted --reasoner.shift 0.5 --reasoner.steps 9", "reasoner.shift is 0.5; give 1 to 100"),
    ("--reasoner.solver unipc --reasoner.renoise true", "renoise is given with solver unipc; give --reasoner.solver e"),
    ("--reasoner.guidance 0.5", "reasoner.guidance is 0.5; give 0, or 1 to 100"),
    ("--reasoner.guidance -1", "reasoner.guidance is -1.0; give 0, or 1 to 100"),
    ("--reasoner.negative_prompt ugly", "reasoner.negative_prompt is given without guidance; give --reasoner.guidance"),
    ("--reasoner.renoise maybe", "--reasoner.renoise: Expected a bool. Got value: maybe"),
    ("--decoder.kind heavy", "--decoder.kind: Expected light or standard"),
    ("--decoder.shrink -1", "decoder.shrink is -1 for the light decoder; give 0 to 3"),
    ("--decoder.kind standard --decoder.shrink 1", "1 for the standard decoder; give 0 to 3, and --decoder.kind light"),
    ("--teacher.frames 0", "teacher.frames is 0; give 1 or more"),
    ("--teacher.frames 26", "the videos of miniworld have only 25 frames; give --teacher.frames 25 or fewer"),
    ("--teacher.answers '[]'", "teacher.answers is []; give one answer or more"),
    ("--teacher.answers '[\" \"]'", "teacher.answers is [' ']; give one answer or more"),
    ("--adapter.rank 0", "adapter.rank is 0; give 1 or more"),
    ("--adapter.alpha 0", "adapter.alpha is 0.0; give a positive number, or null for alpha = rank"),
    ("--adapter.alpha -1", "adapter.alpha is -1.0; give a positive number"),
    ("--adapter.alpha .nan", "adapter.alpha is nan; give a "),
    ("--adapter.targets everything", "--adapter.targets: Expected attention, "),
    ("--optimization.steps 0", "optimization.steps is 0; give 1 or more"),
    ("--optimization.lr 0", "optimization.lr is 0.0; give a positive learning rate such as 5e-5"),
    ("--optimization.lr=-1e-3", "optimization.lr is -0.001; give a positive"),
    ("--optimization.lr nan", "--optimization.lr: Expected a float. Got value: nan"),
    ("--optimization.lr .inf", "optimization.lr is inf; give a finite number"),
    ("--optimization.tau -0.1", "optimization.tau is -0.1, but a loss is never below 0; give 0.22"),
    ("--optimization.tau .inf", "optimization.tau is inf; give a finite number"),
    ("--optimization.goal_weight 1.1", "optimization.goal_weight is 1.1; give a number from 0 to 1"),
    ("--optimization.goal_weight .nan", "optimization.goal_weight is nan; give a "),
    ("--optimization.denoise_step 2", "--optimization.denoise_step: Expected first, "),
    ("--optimization.clip_norm 0", "optimization.clip_norm is 0.0; give a positive number such as 1"),
    ("--optimization.clip_norm .nan", "optimization.clip_norm is nan; give a "),
    ("--bank.least_similarity 2", "bank.least_similarity is 2.0; give a cosine from -1 to 1"),
    ("--bank.add false --bank.folder nowhere", "bank.folder nowhere does not exist; give the folder of a bank"),
    ("--optimization.weight_decay -1", "optimization.weight_decay is -1.0; give 0 or more"),
    ("--optimization.starts 0", "optimization.starts is 0; give 1 or more"),
    ("--optimization.keep first", "--optimization.keep: Expected last, "),
    ("--logging.previews_every -1", "logging.previews_every is -1; give 0 for no previews"),
    ("--logging.project team/project", "logging.project is 'team/project'; give 1 to 128 characters without /"),
    ("--logging.wandb on", "--logging.wandb: Expected auto, "),
    ("--chat.backend gemini", "--chat.backend: Expected teacher, "),
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
    ("--limit 9223372036854775808", "limit is 9223372036854775808; give 1,000,000 or less"),
    ("--seed 9223372036854775808", "seed is 9223372036854775808; give 9,223,372,036,854,775,807 or less"),
    (f"--limit {'9' * 4000}", "limit is 9999999999999999999999999999999999999999...; give 1,000,000 or less"),
    ("--optimization.starts 1000000000", "optimization.starts is 1000000000; give 10,000 or less"),
    ("--optimization.steps 1000000000", "optimization.steps is 1000000000; give 100,000 or less"),
    ("--teacher.frames 1000000000000000", "teacher.frames is 1000000000000000; give 65,536 or less"),
    ("--adapter.rank 1000000000", "adapter.rank is 1000000000; give 4,096 or less"),
    ("--batch-samples 1000000000", "batch_samples is 1000000000; give 65,536 or less"),
    ("--sample.fps 1000000000", "sample.fps is 1000000000; give 1,000 or less"),
    ("--sample.height 1000000000", "sample.height is 1000000000; give 32,768 or less"),
    ("--workers.count 1000000000", "workers.count is 1000000000; give 65,536 or less"),
    ("--workers.gpus 1000000000", "workers.gpus is 1000000000.0; give 1,024 or less"),
    ("--chat.timeout 1000000000", "chat.timeout is 1000000000.0; give 86,400 or less"),
    ("--chat.max_tokens 1000000000", "chat.max_tokens is 1000000000; give 1,000,000 or less"),
    (f"--reasoner.sigmas '{[*range(1001, 0, -1)]}'", "reasoner.sigmas has 1,001 values; give 1,000 or fewer"),
    (f"--reasoner.sigmas '{[0.5] * 100_000}'", "--reasoner.sigmas: it is longer than 128 KiB; give less"),
    (f"--reasoner.sigmas '{[1] * 11_000}'", "--reasoner.sigmas: it holds more than 10,000 values"),
    ("--run-dir a\0b", "run_dir holds a NUL character; leave it out"),
    ("--sample.prompt a\0b", "sample.prompt holds a NUL character; leave it out"),
    ("--sample.id \udcff", "sample.id holds a half of a character (a lone surrogate); write it in UTF-8"),
    ("--root \ud800", "root holds a half of a character (a lone surrogate)"),
    ("--method.path a.B --method.arguments.x \ud800", "method.arguments.x holds a half of a character"),
    ("--sample.prompt go --sample.frames 8001", "sample.frames is 8001, but the video model has positions for 253 at"),
    ("--sample.prompt move --sample.width 1040", "is 1040, but the video model has positions for 1024 at most"),
    ("--base maxi", "--base maxi: no such configuration; there are .. mini"),
    ("--config collabvr --method.arguments.attempts 0", "method.arguments: attempts: .. greater than 0; there are"),
    ("--config collabvr --method.arguments.keep_above .nan", "method.arguments.keep_above is nan; give a finite numbe"),
    ("--config collabvr --method.arguments.clip_seconds '[0]'", "method.arguments: clip_seconds.0: "),
    ("--config collabvr --method.arguments.clip_seconds '[]'", "method.arguments: clip_seconds: List should have at"),
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
    ("seed: 1\nlimit: 2\nseed: 3", "c.yaml is not valid YAML: .. seed is given twice"),
    ("teacher: {frames: 5, frames: 9}", "frames is given twice"),
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
    ("a: &a [x, x]\n" + "".join(f"{k}: &{k} [{', '.join([f'*{chr(ord(k) - 1)}'] * 9)}]\n" for k in "bcdefghij"),
     "c.yaml is not valid YAML: it holds more than 10,000 values, aliases written out"),
    ("families: [" + "x, " * 11_000 + "]", "c.yaml is not valid YAML: it holds more than 10,000 values"),
    ("reasoner: {sigmas: [" + "0.5, " * 100_000 + "]}", "c.yaml is larger than 128 KiB, which no configuration is"),
    ("seed: &a [*a]", "c.yaml is not valid YAML: an alias is nested in what it stands for; write it out"),
    ("<<: &a {seed: 1, <<: *a}", "c.yaml is not valid YAML: an alias is nested in what it stands for"),
    ('run_dir: "a\\0b"', "run_dir holds a NUL character"),
    ('sample: {id: "a\\ud800"}', "sample.id holds a half of a character"),
    ("method: {arguments: {a: [{b: .inf}]}}", "method.arguments.a.0.b is inf; give a finite number"),
    ("seed: 1\nteacher: {frames: 5}\nteacher.frames: 9", "c.yaml: teacher.frames is given twice; leave out one"),
    ("base: maxi", "c.yaml: base maxi: no such configuration; there are .. mini"),
    ("base: b.yaml", "c.yaml: base b.yaml: there is no such file"),
    ("base: c.yaml", "c.yaml: base leads in a circle (c.yaml -> c.yaml); leave out one base, or say base: null"),
    ("base: [mini]", "c.yaml: base is ['mini']; give the name of a configuration or a YAML file"),
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
    ("optimization: {lr: .nan}", "optimization.lr is nan; give a "),
    ("optimization: {lr: -.inf}", "optimization.lr is -inf; give a "),
    ("optimization: {weight_decay: .inf}", "optimization.weight_decay is inf; give a finite number"),
    ("reasoner: {sigmas: [1, x]}", "--reasoner.sigmas: Expected a list of floats or .. Got value: [1.0, 'x']"),
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
    ("compare --config c.yaml --base maxi", "--base maxi: no such configuration; there are"),
    ("compare --config c.yaml --base", "--base: expected one argument"),
    ("compare --config c.yaml --methods '[]'", "methods is empty; name some, as configs/compare.yaml does"),
    ("compare --config m.yaml", "--methods: the following arguments are required: name"),
    ("compare --config c.yaml --methods '[{name: a},{name: A}]'", "the name 'a' is empty or too like another; give ea"),
    ("compare --config c.yaml --methods '[{name: \"..\"}]'", "methods: the name '..' is empty or too like another"),
    ("compare --config c.yaml --methods '[{name: single, settings: {tau: 1}}]'", "method single: tau: there is no suc"),
    ("compare --config c.yaml --methods '[{name: single, settings: {batch_samples: x}}]'", "method single: --batch"),
    ("compare --config c.yaml --methods '[{name: single, settings: {optimization.lr: -1}}]'", "method single: .. lr i"),
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
    ("plan --gpus 8 --steps-from nowhere", "nowhere holds no finished sample that was optimized; give the folder of a"),
    ("plan --gpus 8 --steps-from thesis", "thesis holds no finished sample that was optimized"),
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
    ("plan --tau 1", "--tau: there is no such setting; the nearest is --optimization.tau"),
    ("bench --size 7b", "argument --size: invalid choice: '7b'"),
    ("bench --steps 0", "--steps is 0; give 1 or more"),
    ("bench --ways nothing", "--ways nothing matches no row; there are plain"),
    ("bench --ways '['", "--ways [ is no regular expression"),
    ("bench --seed 1", "unrecognized arguments: --seed 1"),
    ("fitt", "'fitt' is no command; the nearest is fit (--help lists all)"),
    ("list", "'list' is no command; there are fit, demo, compare, evaluate, report, app, fetch, push, plan, bench"),
    ("compare --config bomb.yaml", "bomb.yaml is not valid YAML: it holds more than 10,000 values"),
    ("plan --config bomb.yaml", "bomb.yaml is not valid YAML: it holds more than 10,000 values"),
    ("fit --run-dir bombed", "bombed/config.yaml cannot be read as a run's configuration (bombed/config.yaml is no"),
    ("report --run-dir bombed", "bombed/config.yaml is not valid YAML: it holds more than 10,000 values"),
    ("compare --config c.yaml --methods '[{name: single, settings: {sample: {prompt: a}}}]'", "sample.prompt must be"),
]  # fmt: skip


@pytest.mark.parametrize("typed, expected", OTHERS, ids=[typed[:70] for typed, _ in OTHERS])
def test_other_commands(typed: str, expected: str, place: Path, capsys: Capture) -> None:
    write(place, {"thesis/chapter.tex": "", "broken/samples/a/result.json": "{"})
    (place / "c.yaml").write_text(METHOD)
    (place / "m.yaml").write_text("methods: [{path: a.B}]")
    (place / "b.yaml").write_text(f"base: 5\n{METHOD}")
    (place / "deep.yaml").write_text("base: " + "[" * 1500)
    bomb = "".join(f"x{n}: &{n} [{', '.join([f'*{n - 1}'] * 9) if n else 1}]\n" for n in range(10))
    write(place, {"bomb.yaml": bomb, "bombed/config.yaml": bomb, "bombed/samples/x": ""})
    refused_untouched(place, shlex.split(typed), expected, capsys)


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


RUNS: list[tuple[str, str, str]] = [  # which file, what it holds, what "ttopt report" says
    ("config.yaml", "{", "run/config.yaml is not valid YAML"),
    ("config.yaml", "tau: 1", "run/config.yaml: tau: there is no such setting"),
    ("samples/a/result.json", "", "run/samples/a/result.json cannot be read .. remove run/samples/a to make it again"),
    ("samples/a/result.json", "{", "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", "[]", "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", "{}", "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", '{"score": 5}', "run/samples/a/result.json cannot be read .. remove run/samples/a"),
    ("samples/a/result.json", '{"optimization": []}', "run/samples/a/result.json cannot be read .. remove"),
    ("samples/a/result.json", "[" * 50_000, "run/samples/a/result.json cannot be read .. remove run/samples/a"),
]


LEFT_OUT: list[tuple[str, str, str]] = [  # which file, what it holds, what is said of the page without it
    ("samples/a/video.mp4", "no video", "run/samples/a/video.mp4 is no mp4 file"),
    ("samples/a/curves.csv", "step,loss\n0,x\n", "run/samples/a/curves.csv cannot be read"),
    ("samples/a/trace.json", "{", "run/samples/a/trace.json cannot be read"),
    ("samples/a/trace.json", "[]", "run/samples/a/trace.json cannot be read"),
]


def earlier_run(place: Path, file: str, content: str) -> None:
    write(place / "run", {"config.yaml": "seed: 1"})
    (place / "run/samples/a").mkdir(parents=True)
    Result(
        sample="a", family="", split="", prompt="go", method="m", accepted=None, stop="", score=None,
        cost=Cost(1, 1, 1, 1), first_frame_ssim=None, seeds={}, seconds={"total": 1.0}, peak_mb={}, device="cpu",
        versions={}, finished="2026-01-01",
    ).save(place / "run/samples/a")  # fmt: skip
    write(place / "run", {file: content})


@pytest.mark.parametrize("file, content, expected", LEFT_OUT, ids=[f"{file} {text[:20]}" for file, text, _ in LEFT_OUT])
def test_what_is_damaged_is_left_out_of_the_page(
    file: str, content: str, expected: str, place: Path, capsys: Capture
) -> None:
    earlier_run(place, file, content)
    assert main(["report", "--run-dir", "run"]) == 0
    said = capsys.readouterr()
    assert "page: run/report.html" in said.out and expected in said.err + said.out


@pytest.mark.parametrize("file, content, expected", RUNS, ids=[f"{file} {text[:20]}" for file, text, _ in RUNS])
def test_earlier_runs(file: str, content: str, expected: str, place: Path, capsys: Capture) -> None:
    earlier_run(place, file, content)
    refused_untouched(place, ["report", "--run-dir", "run"], expected, capsys)
