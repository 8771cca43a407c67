"""What is published: the source distribution and the wheel built from it, installed where nothing else of us is.

PYTHONS="python3.12 python3.13" python -m pytest -m slow tests/test_release.py    # with all dependencies, minutes each
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import ttopt

ROOT = Path(__file__).parent.parent
PYTHONS = os.environ.get("PYTHONS", "").split()
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "WANDB_API_KEY")}
CONTENT = {
    "ttopt/py.typed", "ttopt/configs/mini.yaml", "ttopt/planning/step_counts.json",
    "ttopt/evaluate/report/templates/page.html",
    "ttopt/miniworld/weights/README.md", "ttopt/miniworld/weights/teacher/model.safetensors",
    "ttopt/miniworld/weights/chat/model.safetensors",
    "ttopt/miniworld/weights/reasoner/tokenizer/tokenizer.json", "loop/prompts/plan.txt", "callbacks/__init__.py",
}  # fmt: skip
KINDS = {".py", ".typed", ".json", ".safetensors", ".yaml", ".txt", ".md", ".html", ".js", ".css"}


def ran(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    ran(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.mark.slow
def test_what_is_in_them(built: Path) -> None:
    name = f"ttopt_video-{ttopt.__version__}"
    with zipfile.ZipFile(built / f"{name}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        about = wheel.read(f"{name}.dist-info/METADATA").decode()
    assert names >= CONTENT | {f"{name}.dist-info/licenses/LICENSE"}
    files = {file for file in names if not file.startswith(f"{name}.dist-info/")}
    assert {file.split("/")[0] for file in files} == {"ttopt", "loop", "callbacks"}
    assert {Path(file).suffix for file in files} <= KINDS and not any("__pycache__" in file for file in files)
    assert "License-Expression: Apache-2.0" in about and "Requires-Python: >=3.11" in about
    with tarfile.open(built / f"{name}.tar.gz") as source:
        names = set(source.getnames())
    wanted = [
        "README.md",
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "configs/mini.yaml",
        "docs/index.md",
        "tests/conftest.py",
    ]
    assert names >= {f"{name}/{file}" for file in wanted}
    assert not any(
        "__pycache__" in file or "/runs/" in file or "/." in file.replace("/.gitignore", "") for file in names
    )


@pytest.mark.slow
@pytest.mark.parametrize("python", [sys.executable, *PYTHONS])
def test_the_wheel_works_alone(python: str, built: Path, tmp_path: Path) -> None:
    """Outside the checkout. This interpreter's own dependencies are lent to it, others install all of them."""
    ran(python, "-m", "venv", "venv", cwd=tmp_path)
    there = tmp_path / "venv/bin/python"
    lent = python == sys.executable
    if lent:
        own = ran(there, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip()
        (Path(own) / "lent.pth").write_text("\n".join(site.getsitepackages()))
    ran(there, "-m", "pip", "install", *(["--no-deps"] if lent else []), *built.glob("*.whl"), cwd=tmp_path)
    where = ran(there, "-c", "import ttopt, loop, callbacks; print(ttopt.__file__)", cwd=tmp_path)
    assert where.startswith(str(tmp_path / "venv"))
    assert ran(tmp_path / "venv/bin/ttopt", "--version", cwd=tmp_path).strip() == ttopt.__version__
    ran(there, "-m", "ttopt", "fit", "--limit", "1", "--run-dir", "run", cwd=tmp_path)
    assert (tmp_path / "run/report.html").exists() and list(tmp_path.glob("run/samples/*/video.mp4"))
    if not lent:
        ran(there, "-m", "pip", "check", cwd=tmp_path)
