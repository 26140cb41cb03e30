"""The examples in the README, the documentation and the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "PACKAGE.md")
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def blocks(page: Path) -> list[str]:
    """Return the Python of a page that is meant to run: blocks of ``python``, not of ``py``."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("name", TOP)
def test_the_first_example_finds_the_dog(name, minilm, capsys):
    code = blocks(ROOT / name)[0]
    exec(compile(code, name, "exec"), {})
    assert capsys.readouterr().out.startswith("4.0 8.0\n")
    assert len([line for line in code.splitlines() if line]) == 12


@pytest.mark.parametrize("name", TOP)
def test_the_other_examples_run(name, minilm):
    for code in blocks(ROOT / name)[1:]:
        exec(compile(code, name, "exec"), {})


def test_the_readme_fits_on_a_few_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if blocks(page)],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_the_cells_of_a_page_run_in_order(page, minilm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "demo/demo.mp4" in page.read_text(encoding="utf-8"):
        from granalign_fast.miniatures.videos import render_video

        (tmp_path / "demo").mkdir()
        render_video("demo/demo.mp4", 7, seconds=(60.0, 66.0))
    names = {}
    for code in blocks(page):
        exec(compile(code, page.name, "exec"), names)


_WITH_EXAMPLES = (
    *(
        "models.chat",
        "language.llm_rewriter",
        "language.answers",
        "language.items",
        "models.thoughts",
        "metrics.existence",
        "output.filmstrip",
    ),
    *("output.timeline", "pipeline", "models.graph_contract", "models.static_cache"),
    "models.image_layout",
    "runtime.workers",
)


@pytest.mark.parametrize("module", _WITH_EXAMPLES)
def test_the_docstrings_examples_run(module, minilm):
    names = vars(importlib.import_module("granalign_fast"))["__all__"]
    public = {name: getattr(importlib.import_module("granalign_fast"), name) for name in names}
    result = doctest.testmod(importlib.import_module(f"granalign_fast.{module}"), extraglobs=public)
    assert result.attempted
    assert not result.failed
