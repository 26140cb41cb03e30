"""Data flows one way: no module imports one of a floor above, and none imports itself in a circle.

Every import counts, also one inside a function and one for type checkers alone.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "granalign_fast"
LINKED = ("kernels", "export", "bench")
"""Folders of the repository that are subpackages under their own name."""

FLOORS = (
    {"kernels"},
    {"errors", "parsing", "reading", "files", "jsonl", "types", "config", "protocols"},
    {"runtime", "video", "storage"},
    {"models", "language"},
    {"export", "index", "search", "datasets", "metrics", "output", "miniatures"},
    {"library"},
    {"pipeline", "evaluation"},
    {"cli", "server", "bench"},
)
"""From the bottom up; the package's own names and ``__main__`` are above all of them."""
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MOST_MODULES = 10
"""Modules that may lie directly in the package."""
MOST_LINES = 400


def sources() -> dict[str, Path]:
    """Every module of the package by its full name."""
    found = {}
    for top in (PACKAGE, *LINKED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if top == PACKAGE and len(parts) > 2 and parts[1] in LINKED:
                continue  # the links: these files are found in their own folders
            if top != PACKAGE:
                parts = (PACKAGE, *parts)
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(parts)] = path
    return found


SOURCES = sources()


def imports(module: str, path: Path) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it the import stands."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in SOURCES)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{origin}.{alias.name}"
                if name in SOURCES or origin in SOURCES:
                    yield name if name in SOURCES else origin


@functools.cache
def all_imports() -> dict[str, set[str]]:
    """The imports of each module. Parsing all takes a second: no process does it to collect."""
    return {module: set(imports(module, path)) - {module} for module, path in SOURCES.items()}


def room(module: str) -> str:
    """The folder or file below the package; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def test_every_room_has_a_floor() -> None:
    assert {room(module) for module in SOURCES} - {"", "__main__"} <= FLOOR.keys()


def floor(module: str) -> int:
    """The number of a module's floor."""
    return FLOOR.get(room(module), len(FLOORS))


def test_no_import_goes_up() -> None:
    pairs = [(module, other) for module, others in all_imports().items() for other in others]
    assert not [pair for pair in pairs if floor(pair[1]) > floor(pair[0])]


def test_there_is_no_circle() -> None:
    try:
        TopologicalSorter(all_imports()).prepare()
    except CycleError as error:
        pytest.fail(f"circle of imports: {' -> '.join(error.args[1])}")


def test_few_modules_lie_in_the_package_itself() -> None:
    own = [path.name for path in (ROOT / PACKAGE).glob("*.py")]
    assert len(own) <= MOST_MODULES, own


def test_no_file_is_too_long() -> None:
    code = [path for top in (PACKAGE, *LINKED, "tests") for path in (ROOT / top).rglob("*.py")]
    code += [path for path in (ROOT / "kernels").iterdir() if path.suffix in (".cu", ".cuh")]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in code}
    assert not {str(path): count for path, count in lengths.items() if count > MOST_LINES}


def test_all_imports_are_seen() -> None:
    """The test of the test: it reads relative, lazy and type-checking imports."""
    assert f"{PACKAGE}.search.clock" in all_imports()[f"{PACKAGE}.search.retriever"]
    assert f"{PACKAGE}.export.cached" in all_imports()[f"{PACKAGE}.pipeline"]
    assert f"{PACKAGE}.pipeline" in all_imports()[PACKAGE]
