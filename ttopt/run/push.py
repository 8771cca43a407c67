"""``ttopt push``: a sample's adapter on the hub, with a model card, through huggingface_hub."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ttopt.config.fields import hints
from ttopt.config.settings import EMBEDDED, FitSettings, flat
from ttopt.config.version import __version__
from ttopt.config.yaml_text import dump, read
from ttopt.errors import Arguments, UserError, brief, one_line
from ttopt.record.plain import read_plain
from ttopt.record.result import Optimization, Result
from ttopt.record.run_folder import CONFIG

CARD = "README.md"
ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_wan.safetensors")
LARGEST = 4 * 2**30  # bytes of an adapter


def push_parser() -> Arguments:
    """What push can be told."""
    parser = Arguments(
        "push",
        "Puts the adapter of a sample on the hub, with a model card that holds its prompt and its numbers.",
        "The token comes from HF_TOKEN, or from hf auth login.",
    )
    parser.add_argument("--sample", type=Path, required=True, help="a result's folder, e.g. runs/x/samples/a")
    parser.add_argument("--to", required=True, help="owner/name of the repository, which is made if it is not there")
    parser.add_argument(
        "--license", default="other", help="of the adapter, e.g. apache-2.0: the video model's has a say"
    )
    parser.add_argument("--public", action="store_true", help="everybody may read it; without: a private repository")
    parser.add_argument("--card", action="store_true", help="only print the model card")
    return parser


def parse_push(args: Sequence[str]) -> argparse.Namespace:
    """The command's arguments. Raises UserError."""
    own = push_parser().parse_args(list(args))
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", own.to):
        raise UserError(f"--to {own.to}: give owner/name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", own.license):
        raise UserError(f"--license {own.license}: give one of the hub's names, e.g. apache-2.0, or other")
    return own


def push(own: argparse.Namespace) -> int:
    """Uploads the adapter's files and the card in one commit. Raises UserError."""
    folder = own.sample
    result = Result.load(folder)
    files = [folder / "adapter" / name for name in ADAPTERS if (folder / "adapter" / name).is_file()]
    if not files:
        why = ": no step was taken" if result.optimization and result.optimization.steps == 0 else ""
        raise UserError(f"{folder} has no adapter{why}; give the folder of a sample that was optimized")
    text = card(result, flat(read(folder / CONFIG, hints(FitSettings))), own.to, own.license)
    if own.card:
        print(text)
        return 0
    from huggingface_hub import HfApi  # heavy: not for mistakes

    with TemporaryDirectory() as scratch:
        for file in files:  # plain files only: a link could put anything on the hub
            (Path(scratch) / file.name).write_bytes(read_plain(file, folder, LARGEST))
        (Path(scratch) / CARD).write_text(text, encoding="utf-8")
        print(f"{own.to}: {', '.join([CARD, *(file.name for file in files)])}", flush=True)
        try:
            api = HfApi()
            api.create_repo(own.to, private=not own.public, exist_ok=True)
            if not own.public and not api.model_info(own.to).private:  # it was there before
                raise UserError(f"{own.to} can be read by everybody; give --public, or another repository")
            done = api.upload_folder(repo_id=own.to, folder_path=scratch, commit_message=f"Adapter of {result.sample}")
        except UserError:
            raise
        except Exception as error:  # the hub raises many kinds
            raise UserError(f"{own.to} cannot be written ({brief(error)}); set HF_TOKEN to a token that may") from error
    print(f"pushed: {done.commit_url}")
    return 0


def card(result: Result, config: dict[str, object], to: str, terms: str) -> str:
    """The model card: what the adapter is for, its numbers, and how it is loaded."""
    base, o = str(config.get("reasoner.model", EMBEDDED)), result.optimization
    head: dict[str, object] = {"library_name": "diffusers", "license": terms}
    if base != EMBEDDED and re.fullmatch(r"[\w.-]+/[\w.-]+", base):
        head["base_model"] = base
    rank = config.get("adapter.rank")
    head["tags"] = ["lora", "video-generation", "test-time-optimization", "ttopt"]
    return f"""---
{dump(head).rstrip()}
---

# One sample's adapter

A LoRA that was optimized at test time for **one** prompt and first frame, until a vision-language model was satisfied
with the video (VLM-as-Teacher, arXiv 2606.02564). It is not meant for other prompts.

{_quoted(result.prompt)}

{_numbers(o)}

| | |
|---|---|
| video model | {_cell(base)} |
| vision-language model | {_cell(config.get("teacher.model", EMBEDDED))} |
| rank, alpha | {_cell(rank)}, {_cell(config.get("adapter.alpha") or rank)} |
| why it stopped | {_cell(result.stop)} |
| seed of the noise | {_cell(result.seeds.get("noise"))} |
| made with | ttopt {__version__} |

`pytorch_lora_weights.safetensors` is for diffusers, `adapter_wan.safetensors` (the original names) for ComfyUI:

```python
pipeline.load_lora_weights("{to}")
```
"""


def _numbers(o: Optimization | None) -> str:
    if o is None:
        return ""
    lines = [
        "| | before | after |",
        "|---|---|---|",
        f"| loss | {o.video_before.loss:.3f} | {o.video_after.loss:.3f} |",
    ]
    asked = [o.queries.get("goal", ""), *o.queries.get("process", [])]
    for question, before, after in zip(asked, o.video_before.p_yes, o.video_after.p_yes, strict=False):
        lines.append(f"| P(Yes): {_cell(question)} | {before:.3f} | {after:.3f} |")
    return "\n".join([f"After {o.steps} steps:", "", *lines])


def _quoted(text: str) -> str:
    """A prompt as indented code, in which nothing has a meaning."""
    return f"    {one_line(text)}"


def _cell(value: object) -> str:
    """A value in a table: on one line, and without Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>|#!])", r"\\\1", one_line(str(value))).replace("&", "&amp;")
