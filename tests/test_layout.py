"""The house: which room may import which, read from the syntax trees (docs/layout.md has the list in words)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom up: a room imports only from itself and from those before it.
ROOMS = (
    "errors", "miniworld", "config", "data", "models", "record", "optimization", "methods", "planning", "run",
    "evaluate", "__init__", "__main__",
)  # fmt: skip
INSIDE_FUNCTIONS = 10  # each has its reason in a comment


@dataclass(frozen=True)
class Import:
    file: str
    line: int
    module: str  # that is imported, e.g. ttopt.record.result
    where: str  # "", "function" or "type checking"


def imports(file: Path) -> Iterator[Import]:
    """Every import of ours in a file, those inside functions and under TYPE_CHECKING included."""

    def walk(node: ast.AST, where: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inside = "function"
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                inside = "type checking"
            if isinstance(child, ast.ImportFrom) and child.level == 0 and child.module:
                for alias in child.names:
                    whole = f"{child.module}.{alias.name}"
                    module = whole if path_of(whole) else child.module
                    if module.split(".")[0] in ("ttopt", "loop", "callbacks", "training", "benchmarks", "tests"):
                        yield Import(str(file.relative_to(ROOT)), child.lineno, module, where)
            elif isinstance(child, ast.Import):
                for alias in child.names:
                    if alias.name.split(".")[0] in ("ttopt", "loop", "callbacks", "training", "benchmarks"):
                        yield Import(str(file.relative_to(ROOT)), child.lineno, alias.name, where)
            yield from walk(child, inside)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), "")


def path_of(module: str) -> Path | None:
    place = ROOT / module.replace(".", "/")
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def module_of(file: str) -> str:
    return (
        file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") if file != "ttopt/__init__.py" else "ttopt"
    )


CORE = [found for file in sorted((ROOT / "ttopt").rglob("*.py")) for found in imports(file)]


def test_the_top_of_the_package_is_seen_at_a_glance() -> None:
    entries = sorted(path.name for path in (ROOT / "ttopt").iterdir() if path.name != "__pycache__")
    assert len(entries) <= 14, entries
    assert {name.removesuffix(".py") for name in entries} - {"py.typed"} == set(ROOMS)


def test_imports_go_down() -> None:
    wrong = []
    for found in CORE:
        here, there = room(module_of(found.file)), room(found.module)
        if found.module.split(".")[0] == "ttopt" and ROOMS.index(there) > ROOMS.index(here):
            wrong.append(f"{found.file}:{found.line} imports {found.module}, but {there} stands above {here}")
    assert not wrong, "\n".join(wrong)


def test_the_core_knows_nothing_of_what_stands_beside_it() -> None:
    wrong = [f"{f.file}:{f.line} imports {f.module}" for f in CORE if f.module.split(".")[0] != "ttopt"]
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_itself_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for found in CORE:
        target = path_of(found.module)
        if target is not None:
            graph.setdefault(found.file, set()).add(str(target.relative_to(ROOT)))
    done: set[str] = set()

    def visit(file: str, way: tuple[str, ...]) -> None:
        assert file not in way, "a circle: " + " -> ".join((*way[way.index(file) :], file))
        if file in done:
            return
        for target in sorted(graph.get(file, ())):
            visit(target, (*way, file))
        done.add(file)

    for file in sorted(graph):
        visit(file, ())


def test_imports_inside_functions_are_few_and_say_why() -> None:
    hidden = [found for found in CORE if found.where == "function"]
    assert len(hidden) <= INSIDE_FUNCTIONS, "\n".join(f"{f.file}:{f.line} {f.module}" for f in hidden)
    for found in hidden:
        text = (ROOT / found.file).read_text(encoding="utf-8").splitlines()[found.line - 1]
        assert "#" in text, f"{found.file}:{found.line} imports inside a function and does not say why"


@pytest.mark.parametrize("beside", ["loop", "callbacks"])
def test_what_stands_beside_works_under_any_name(beside: str) -> None:
    """Else a user's own module of that name would be imported instead (ttopt/config/lookup.py)."""
    for file in sorted((ROOT / beside).rglob("*.py")):
        for found in imports(file):
            assert found.module.split(".")[0] != beside, f"{found.file}:{found.line}: import it with a leading dot"
