"""Ours and a user's modules of one name, side by side; and the Python face's lazy names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ttopt
from ttopt.config.lookup import find_object, ours

ROOT = Path(ttopt.__file__).parent.parent
SCRIPT = """\
import sys
from ttopt.config.lookup import find_object, ours
assert find_object("loop.StepLoop").__name__ == "StepLoop"
assert find_object("loop.engine.StepLoop") is find_object("loop.StepLoop")
assert find_object("loop.Mine")().solve() == "mine"
assert find_object("callbacks.MyCallback").mine and find_object("callbacks.LossThreshold").__name__ == "LossThreshold"
assert ours("callbacks").standard and ours("callbacks") is ours("callbacks")
import callbacks  # as the user's own code does
print(callbacks.__file__)
"""


@pytest.mark.parametrize("first", [True, False], ids=["python -m", "the installed command"])
def test_a_users_own_callbacks_and_loop_neither_hide_ours_nor_are_hidden(tmp_path: Path, first: bool) -> None:
    """``python -m ttopt`` looks into the working directory first, the installed command not at all."""
    (tmp_path / "callbacks.py").write_text("class MyCallback:\n    mine = True\n")
    (tmp_path / "loop.py").write_text("class Mine:\n    def solve(self): return 'mine'\n")
    paths = [str(tmp_path), str(ROOT)] if first else [str(ROOT)]
    (tmp_path / "elsewhere").mkdir()
    script = tmp_path / "elsewhere/script.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    ran = subprocess.run([sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert Path(ran.stdout.strip()) == (tmp_path / "callbacks.py" if first else ROOT / "callbacks/__init__.py")


def test_what_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        find_object("loop.Nothing")
    with pytest.raises(ImportError, match="no_such_module"):
        find_object("no_such_module.Thing")
    assert ours("loop.engine").__name__ in ("loop.engine", "ttopt_loop.engine")


def test_the_face_is_there_and_lazy() -> None:
    assert all(getattr(ttopt, name) is not None for name in ttopt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'optimise'"):
        ttopt.optimise  # noqa: B018
    heavy = "import sys, ttopt; print(sorted({'torch', 'lightning', 'diffusers', 'numpy'} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ran.stdout.strip() == "[]"
