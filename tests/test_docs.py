"""Every command and snippet of README.md and docs/: read by the real parsers, and run on the embedded models (slow).

A block behind <!-- not run: why --> is only read, as are the README's installations. One behind
<!-- printed by: command --> holds lines that the command prints, "..." for those left out; seconds may differ. A Python
block whose first line is "# name.py" is saved under that name, for the commands behind it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from string import Template
from typing import Any

import pytest
from markdown_it import MarkdownIt

import ttopt
from ttopt.config.app import PASSWORD, parse_app
from ttopt.config.comparison import parse_compare, parse_evaluate
from ttopt.config.parsing import parse_fit
from ttopt.config.report import parse_report
from ttopt.planning.fetch_arguments import parse_fetch
from ttopt.planning.plan_arguments import parse_plan
from ttopt.run.push import parse_push

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ENDS = {"&&", "||", "|", ";", "&", ">"}
INSTALLATIONS = ("<!-- main job -->", "<!-- tests -->")  # .ci/run runs the second
PARSERS: dict[str, Callable[[Sequence[str]], Any]] = {
    "fit": parse_fit, "compare": parse_compare, "evaluate": parse_evaluate, "report": parse_report, "plan": parse_plan,
    "fetch": parse_fetch, "app": parse_app, "push": parse_push,
}  # fmt: skip
# The commands of the results are those of their tables; here they are run on few samples.
SMALL = """\
#!/bin/bash
case "$* " in
    "-m ttopt fit "*|"-m ttopt compare "*|"-m benchmarks.step_loop "*) set -- "$@" --limit 1 ;;
    "-m benchmarks.effect "*) set -- "$@" --samples 4 --seeds 2 --ceiling 1 ;;
    "-m benchmarks.replies "*) set -- "$@" --samples 2 ;;
esac
"""


PRINTED = "<!-- printed by: "
VARIES = re.compile(r"[\d.]+ s\b|fit-\d+-\d+")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    runs: bool
    printed_by: str = ""


def blocks(page: Path) -> list[Block]:
    found, comment = [], ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            language, marked = token.info.strip(), comment.startswith("<!-- not run: ") or comment in INSTALLATIONS
            printed = comment.removeprefix(PRINTED).removesuffix(" -->") if comment.startswith(PRINTED) else ""
            found.append(Block(language, token.content, language in {"bash", "python"} and not marked, printed))
        comment = token.content.strip() if token.type == "html_block" else ""
    return found


def commands(code: str) -> list[list[str]]:
    """The arguments of every call of ttopt in a shell script."""
    code = re.sub(r"<<'?(\w+)'?\n.*?\n\1\n", "\n", code, flags=re.DOTALL).replace("\\\n", " ")
    found = []
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        for place, word in enumerate(words):
            if word == "ttopt" and (place == 0 or words[place - 1] == "-m"):
                found.append(list(takewhile(lambda word: word not in ENDS, words[place + 1 :])))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_are_right_as_far_as_reading_can_tell(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(PASSWORD, "a long one")
    for block in blocks(page):
        assert block.language not in {"sh", "shell", "console", "py"}, "call it bash or python, so that it is tested"
        if block.language == "python":
            compile(block.code, str(page), "exec")
        if block.language != "bash":
            continue
        subprocess.run(["bash", "-n"], input=block.code, text=True, check=True)
        for name, *arguments in commands(block.code):
            arguments = [Template(argument).safe_substitute(address="head:6379") for argument in arguments]
            for option, value in pairwise(arguments):
                if option in ("--root", "--bank.folder"):
                    Path(value).mkdir(parents=True, exist_ok=True)
                if option == "--config" and value.endswith(".yaml"):
                    written = re.search(rf"cat > {re.escape(value)} <<'END'\n(.*?)END\n", block.code, re.DOTALL)
                    Path(value).write_text(written[1] if written else "limit: 1\n")
            try:
                PARSERS[name](arguments)
            except SystemExit as exit_:  # --help and --print_config
                assert exit_.code in (0, None)


def test_blocks_and_commands_are_found(tmp_path: Path) -> None:
    code = (
        "torchrun --nproc-per-node 2 -m ttopt fit --limit 1 \\\n  --stepz 3 # few\nsrun python -m ttopt report > page"
    )
    assert commands(code) == [["fit", "--limit", "1", "--stepz", "3"], ["report"]]
    (tmp_path / "page.md").write_text("<!-- not run: a GPU -->\n```bash\na\n```\n\n```python\nb\n```\n")
    assert blocks(tmp_path / "page.md") == [Block("bash", "a\n", False), Block("python", "b\n", True)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(b.runs for b in blocks(page))], ids=lambda p: p.name)
def test_blocks_run(page: Path, tmp_path: Path) -> None:
    """All of a page in one folder, in their order."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("")
    python = tmp_path / ".venv/bin/python"
    small = SMALL if page.name in ("README.md", "results.md") else "#!/bin/bash\n"
    python.write_text(f'{small}exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.md", "*.py"))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    environment.pop("WANDB_API_KEY", None)
    for block in blocks(page):
        if not block.runs:
            continue
        command = ["bash", "-euo", "pipefail", "-c", block.code]
        if block.language == "python":
            named = re.match(r"# (\w+\.py)\n", block.code)
            file = tmp_path / (named[1] if named else "snippet.py")
            file.write_text(block.code)
            command = ["python", file.name]
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{block.code}\n{ran.stdout[-2000:]}\n{ran.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [block for page in PAGES for block in blocks(page) if block.printed_by], ids=lambda block: block.printed_by
)
def test_the_pages_show_what_is_printed(block: Block, tmp_path: Path) -> None:
    command = [sys.executable, *shlex.split(block.printed_by)[1:]]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    printed = [VARIES.sub("#", line).strip() for line in ran.stdout.splitlines()]
    for line in block.code.splitlines():
        assert line in ("", "...") or VARIES.sub("#", line).strip() in printed, f"{line!r} is not in\n{ran.stdout}"


def test_the_pages_are_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    build = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", ROOT / "docs", tmp_path]
    ran = subprocess.run(build, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert {path.stem for path in tmp_path.glob("*.html")} >= {page.stem for page in PAGES[1:]}


def test_changes_and_citation_are_of_this_version() -> None:
    assert f"\nversion: {ttopt.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {ttopt.__version__} - " in (ROOT / "CHANGELOG.md").read_text()
