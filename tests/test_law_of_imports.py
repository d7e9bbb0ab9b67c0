"""What each room of the package may import (docs/architecture.md): only rooms on floors below its own."""

import ast
import graphlib
from pathlib import Path

import pytest

import dinov3seg_jax

PACKAGE = Path(dinov3seg_jax.__file__).parent
FLOORS = (
    {"ground"},
    {"visualize"},
    {"models", "text", "cache", "formats"},
    {"store", "data"},
    {"inference", "training", "convert"},
    {"pictures", "costs", "export", "zoo"},
    {"evaluation", "app", "cluster"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {"__init__.py", "__main__.py"}  # the public names, and `python -m`: they lead to whatever they name


def files():
    """The package's files; a recipe that rides in a wheel is none of its rooms."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "configs" not in path.relative_to(PACKAGE).parts]


def room_of(module: str) -> str:
    _, *parts = module.split(".")
    return parts[0] if parts and parts[0] in FLOOR else "ground"


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path):
    """(line, module) of every import of the package, wherever in the file it stands."""
    modules = {module_of(other) for other in files()}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [name if name in modules else str(node.module) for name in names]
        else:
            continue
        yield from ((node.lineno, name) for name in named if name.split(".")[0] == PACKAGE.name)


def test_every_room_has_its_floor():
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} | {"ground"} == set(FLOOR)


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_imports_upwards_or_from_beside(path):
    own = room_of(module_of(path))
    for line, module in imports(path):
        room = room_of(module)
        allowed = room == own or FLOOR[room] < FLOOR[own]
        assert allowed or path.name in DOORS, f"{path}:{line}: {own} may not import {module}, which is in {room}"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module_of(path): {module for _, module in imports(path)} for path in files() if path.name not in DOORS}
    for module, imported in graph.items():
        imported.discard(module)
        imported.discard(PACKAGE.name)  # the facade, for its version
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
