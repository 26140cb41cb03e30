"""What the README and the docstrings show has to run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
def test_the_python_examples_run(code, minilm, capsys):
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.startswith("4.0 8.0\n")


_WITH_EXAMPLES = (
    *("models.chat", "language.llm_rewriter", "metrics.existence", "output.filmstrip"),
    *("output.timeline", "pipeline", "models.graph_contract", "models.static_cache"),
    "models.vision_language_model",
)


@pytest.mark.parametrize("module", _WITH_EXAMPLES)
def test_the_docstrings_examples_run(module, minilm):
    names = vars(importlib.import_module("granalign_fast"))["__all__"]
    public = {name: getattr(importlib.import_module("granalign_fast"), name) for name in names}
    result = doctest.testmod(importlib.import_module(f"granalign_fast.{module}"), extraglobs=public)
    assert result.attempted
    assert not result.failed
