"""Objects by their dotted names: ours, a user's own, and a user's whose module is called like one of ours.

``loop/`` and ``callbacks/`` stand beside the package, as a user's own ``loop.py`` or ``callbacks.py`` in the
working directory may. Neither may hide the other: ours are found by where they lie, and a user's are looked for where
ours do not have the name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

BESIDE = Path(__file__).parents[2]  # where ttopt/, loop/ and callbacks/ lie
OURS = ("callbacks", "loop")


def find_object(path: str) -> Any:
    """What ``path`` names, e.g. loop.StepLoop or my_package.MyCallback. Its module is imported.

    Raises ImportError for a module that is not there or fails, AttributeError for a name that it does not have.
    """
    module, _, name = path.rpartition(".")
    missing: Exception = ImportError(f"no module named {module}")
    for load in _loaders(module):
        try:
            return getattr(load(), name)
        except (ImportError, AttributeError) as error:
            missing = error
    raise missing


def ours(module: str) -> ModuleType:
    """A module of loop/ or callbacks/, whatever the working directory holds."""
    top, _, rest = module.partition(".")
    place = BESIDE / top
    if not _is_ours(top):
        alias = f"ttopt_{top}"
        if alias not in sys.modules:
            _execute(alias, place / "__init__.py", [str(place)])
        module = f"{alias}.{rest}" if rest else alias
    return importlib.import_module(module)


def standard_callbacks(settings: Any) -> Any:
    """The callbacks of every optimization (callbacks.standard), new ones for each sample."""
    return ours("callbacks").standard(settings)


def _loaders(module: str) -> Iterator[Callable[[], ModuleType]]:
    if module.partition(".")[0] in OURS:
        yield lambda: ours(module)
    yield lambda: importlib.import_module(module)
    file = Path.cwd() / f"{module.replace('.', '/')}.py"
    if file.is_file():
        yield lambda: _execute(f"_of_the_user_{module.replace('.', '_')}", file)


def _is_ours(top: str) -> bool:
    spec = importlib.util.find_spec(top)
    return spec is not None and spec.origin is not None and Path(spec.origin).parent == BESIDE / top


def _execute(name: str, file: Path, places: list[str] | None = None) -> ModuleType:
    """The module in ``file`` under a name of its own."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=places)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
