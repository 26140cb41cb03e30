"""The documentation agrees with the code: commands, names, modules, schemas, navigation."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.documentation import ASSEMBLE, DOCS, MODULES, ROOT

import granalign_fast
from granalign_fast.cli.app import app

PAGES = sorted(DOCS.rglob("*.md"))
ALL_PAGES = [*PAGES, ROOT / "README.md", ROOT / "PACKAGE.md"]
GENERATED = {"reference/cli.md", "changelog.md", "explanation/measurements.md"}
"""Pages that `docs/_assemble.py` adds."""
CONTINUED = re.compile(r"\\\n\s*")


def names(page: Path) -> str:
    """Return a page's name as a test id."""
    return page.relative_to(ROOT).as_posix()


# The navigation.


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    in_navigation = re.findall(r"^ .*: ([\w/-]+\.md)$", text, re.MULTILINE)
    assert len(in_navigation) == len(set(in_navigation))
    written = {page.relative_to(DOCS).as_posix() for page in PAGES}
    assert set(in_navigation) == written | GENERATED


@pytest.mark.parametrize("page", PAGES, ids=names)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Links lead to pages. `make docs` also checks anchors, but needs the generator."""
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]+)?\)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        target = (page.parent / link).resolve()
        inside = target.relative_to(DOCS).as_posix()
        assert target.is_file() or inside in GENERATED or inside.startswith("explanation/results/")


def test_the_page_of_a_package_index_stands_alone() -> None:
    text = (ROOT / "PACKAGE.md").read_text(encoding="utf-8")
    assert "![" not in text
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", text))


def test_relative_links_at_the_top_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / link).is_file(), (name, link)


# Commands.


def commands(page: Path) -> Iterator[str]:
    """Yield every line of a page's shell blocks that runs `granalign`."""
    blocks = re.findall(r"```(?:bash|)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        for line in CONTINUED.sub("", block).splitlines():
            if match := re.match(r"\s*(?:\w+=\S+ )*granalign (.*)", line):
                yield re.split(r"\s(?:>|#)\s?", match[1])[0].rstrip(" ;")


COMMANDS = [
    pytest.param(command, id=f"{names(page)}: {command}")
    for page in ALL_PAGES
    for command in commands(page)
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_commands_that_are_shown_exist(line: str) -> None:
    words = shlex.split(line)
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context("granalign", words)  # raises on an unknown option or a missing argument


def test_commands_are_shown() -> None:
    assert len(COMMANDS) > 30


def test_every_command_has_a_reference() -> None:
    page = ASSEMBLE.cli_page()
    for command in ("index", "search", "evaluate", "score", "bench", "doctor", "export llm"):
        assert f"granalign {command}\n" in page
    assert "| `--top` |" in page
    assert "--json" in page


@pytest.mark.parametrize("page", ALL_PAGES, ids=names)
def test_modules_that_are_run_exist(page: Path) -> None:
    for name in re.findall(r"python -m (granalign_fast[\w.]*\w)", page.read_text(encoding="utf-8")):
        if not name.endswith(".NAME"):
            assert importlib.util.find_spec(name) is not None, name


# Names.


def test_the_reference_has_every_public_name() -> None:
    page = (DOCS / "reference" / "api.md").read_text(encoding="utf-8")
    shown = re.findall(r"^::: granalign_fast\.(\w+)$", page, re.MULTILINE)
    assert sorted(set(shown) - {"protocols"}) == sorted(granalign_fast.__all__)


def test_every_constant_of_a_preset_has_its_reason() -> None:
    from granalign_fast.config import RetrieverConfig
    from granalign_fast.kernels import ContextRules, FeedbackRules, ProposalRules

    page = (DOCS / "reference" / "presets.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE))
    expected = {field.name for field in dataclasses.fields(RetrieverConfig)}
    nested = {
        "context": ContextRules,
        "feedback": FeedbackRules,
        "feedback.context": ContextRules,
        "proposals": ProposalRules,
    }
    for path, rules in nested.items():
        expected |= {f"{path}.{field.name}" for field in dataclasses.fields(rules)}
    expected -= nested.keys()
    assert explained == expected
    table = ASSEMBLE.presets_table()
    assert all(f"| `{name}` |" in table for name in expected)


PATHS = re.compile(
    r"`((?:granalign_fast|export|kernels|bench|models|tests|docs|runtime|\.ci)/[^`]*)`"
)


@pytest.mark.parametrize("page", ALL_PAGES, ids=names)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in PATHS.findall(page.read_text(encoding="utf-8")):
        if path.endswith((".py", ".cu", ".md")) and "name." not in path:
            assert (ROOT / path).is_file() or (ROOT / "granalign_fast" / path).is_file(), path


# The sets of models.


def test_the_table_of_sets_is_filled_in() -> None:
    page = (DOCS / "guides" / "models.md").read_text(encoding="utf-8")
    table = ASSEMBLE.model_sets_table()
    assert table in ASSEMBLE.filled_in(page)
    assert len({row.count(" | ") for row in table.splitlines()[:1] + table.splitlines()[2:]}) == 1
    assert "| 23.6 |" in table and "(not verified)" in table and ", gated" in table


def test_the_readme_has_the_computed_sizes() -> None:
    from granalign_fast.cli.models import set_record
    from granalign_fast.models.published import MODEL_SETS

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, models in MODEL_SETS.items():
        record = set_record(models)
        disk, memory = (f"{record[f'{k}_bytes'] / 1e9:.1f} GB" for k in ("disk", "memory"))
        (row,) = re.findall(rf"^\| `{name}`, (.*) \|$", text, re.MULTILINE)
        assert row.split(" | ")[:3] == [models.precision, disk, memory]
        assert row.split(" | ")[4] == models.machine
        for licence in {model.licence.partition(":")[0] for model in models.models}:
            assert licence.removesuffix(" License") in row or licence in row
        assert ("gated" in row) is any(model.gated for model in models.models)


# The map.


def test_the_map_names_every_module() -> None:
    """Mended by `python docs/_modules.py`, then read what it wrote."""
    assert MODULES.listed() == MODULES.modules().keys()


def definitions(path: Path) -> set[str]:
    """Return the functions and classes of a file, and the methods as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef)
            }
    return found


HOPS = re.compile(r"`([\w.]+):([\w.]+)`")


def test_the_read_through_names_what_there_is() -> None:
    text = MODULES.MAP.read_text(encoding="utf-8")
    hops = HOPS.findall(text)
    assert len(hops) > 30
    modules = MODULES.modules()
    missing = [
        f"{module}:{name}"
        for module, name in hops
        if module not in modules or name not in definitions(modules[module])
    ]
    assert not missing


def read_through() -> Iterator[list[tuple[str, str]]]:
    """Yield the path of each stage; ``...`` stands for the path that was written out last."""
    start: list[tuple[str, str]] = []
    for line in MODULES.MAP.read_text(encoding="utf-8").splitlines():
        hops = HOPS.findall(line)
        if line.startswith("| ") and hops:
            yield [*start, *hops] if "| ... > " in line else hops
        elif hops:
            start = hops


def test_every_path_of_the_read_through_is_short() -> None:
    paths = list(read_through())
    assert len(paths) > 20
    for hops in paths:
        assert hops[0][0].startswith("cli."), hops
        assert len(hops) <= 6, f"more than five hops: {hops}"


# Messages.


def test_troubleshooting_quotes_messages_that_there_are() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in MODULES.modules().values())
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    page = (DOCS / "guides" / "troubleshooting.md").read_text(encoding="utf-8")
    terms = re.findall(r"^`([^`]+)`", page, re.MULTILINE)
    assert len(terms) > 10
    for term in terms:
        for part in term.split("..."):
            assert part.strip() in source, term
