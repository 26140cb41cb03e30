"""Errors of sources that somebody else made: whatever is wrong with one is said in one line."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from granalign_fast.errors import foreign_errors

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def names_source(export: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Return an exporter whose every error names the source, its first argument.

    A checkpoint has thousands of values that no check of ours looks at. What a wrong one makes
    NumPy, ONNX or the tokenizer raise becomes one line; ``-vv`` shows where it was raised.
    """

    @functools.wraps(export)
    def run(*arguments: _Arguments.args, **options: _Arguments.kwargs) -> _Result:
        source = arguments[0] if arguments else options["source"]
        with foreign_errors(f"{source}: cannot be exported", "get the checkpoint again"):
            return export(*arguments, **options)

    return run
