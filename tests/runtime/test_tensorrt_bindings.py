"""The stand-in for TensorRT, and so our code, uses only names that the real bindings have.

The bindings are a small public wheel; the libraries beneath them are large. `make
tensorrt-bindings` puts stubs in the libraries' place. With them classes, flags and signatures can
be read, but nothing runs.
"""

from __future__ import annotations

import ast
import ctypes
import enum
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import fake_tensorrt

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [
    ROOT / "granalign_fast" / "runtime" / "engine.py",
    ROOT / "granalign_fast" / "runtime" / "tensorrt_library.py",
    ROOT / "export" / "tensorrt.py",
]

OWNERS = ("builder", "config", "network", "parser", "profile", "made", "engine", "context")
"""Variables in `SOURCES` that hold objects of the bindings."""


@pytest.fixture(scope="module")
def real() -> Any:
    """TensorRT's real bindings."""
    folder_name = os.environ.get("GRANALIGN_TENSORRT_BINDINGS")
    if not folder_name:
        pytest.skip("real: run make tensorrt-bindings")
    folder = Path(folder_name).resolve()
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        (library,) = folder.glob(f"lib{name}.so.*")
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    try:
        import tensorrt_bindings
    finally:
        sys.path.remove(str(folder))
    return tensorrt_bindings


def classes() -> list[type]:
    """Return the classes that the stand-in defines."""
    return [
        value
        for name, value in vars(fake_tensorrt).items()
        if inspect.isclass(value) and value.__module__ == fake_tensorrt.__name__
    ]


def public_members(cls: type) -> dict[str, Any]:
    """Return the public members that a class of the stand-in defines."""
    return {name: value for name, value in vars(cls).items() if not name.startswith("_")}


def overloads(method: Any) -> list[list[str]]:
    """Return the parameters of each signature in a method's docstring."""
    text = method.__doc__ or ""
    signatures = re.findall(rf"{method.__name__}\((self: .*?)\) -> ", text)
    return [re.findall(r"(?:^|, )(\w+)(?=: )", signature)[1:] for signature in signatures]


def test_the_version_is_a_pinned_one(real: Any) -> None:
    folder = os.environ["GRANALIGN_TENSORRT_BINDINGS"]
    pinned = {"10": fake_tensorrt.__version__, "11": fake_tensorrt.NEWEST}
    assert real.__version__ == pinned[folder[-2:]]


def test_every_network_of_ours_is_strongly_typed(real: Any) -> None:
    """Version 10 sets the flag's bit; version 11 knows nothing else."""
    from granalign_fast.export.tensorrt import _network_flags

    flags = _network_flags(real)
    if real.__version__.startswith("10."):
        assert flags == 1 << int(real.NetworkDefinitionCreationFlag.STRONGLY_TYPED) == 2
    else:
        assert flags == 1 and not {"FP16", "BF16", "INT8"} & set(real.BuilderFlag.__members__)


def test_our_code_takes_this_version(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers import fake_cupy

    from granalign_fast.errors import GranAlignError
    from granalign_fast.runtime.tensorrt_library import check_provider_version, libraries

    monkeypatch.setitem(sys.modules, "tensorrt", real)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    assert libraries() == (real, fake_cupy)
    if real.__version__.startswith("10."):
        check_provider_version(real.__version__)
        return
    with pytest.raises(GranAlignError, match=r"got TensorRT 11.* expected 10\.16 .*provider is"):
        check_provider_version(real.__version__)


@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__qualname__)
def test_every_class_is_a_real_one(real: Any, cls: type) -> None:
    real_class = getattr(real, cls.__name__)
    if issubclass(cls, enum.Enum):
        values = {name: int(value) for name, value in real_class.__members__.items()}
        expected = {name: int(value) for name, value in cls.__members__.items()}
        if real.__version__ == fake_tensorrt.__version__:
            assert expected.items() <= values.items()
        assert expected.keys() <= values.keys()
        return
    wrong = []
    for name, value in public_members(cls).items():
        method = getattr(real_class, name, None)
        if method is None:
            wrong.append(f"{name}: no such name")
        elif isinstance(value, property):
            if callable(method):
                wrong.append(f"{name}: is a method")
        elif inspect.isclass(value):
            if not set(value.__members__) <= set(method.__members__):
                wrong.append(f"{name}: {set(method.__members__)}")
        else:
            names = list(inspect.signature(value).parameters)[1:]
            if not any(signature[: len(names)] == names for signature in overloads(method)):
                wrong.append(f"{name}{tuple(names)}: {overloads(method)}")
    assert not wrong


@pytest.mark.parametrize(
    ("cls", "parameters"),
    [
        ("Builder", ["logger"]),
        ("OnnxParser", ["network", "logger"]),
        ("Runtime", ["logger"]),
    ],
)
def test_constructors(real: Any, cls: str, parameters: list[str]) -> None:
    assert overloads(getattr(real, cls).__init__) == [parameters]
    fake = inspect.signature(getattr(fake_tensorrt, cls).__init__)
    assert list(fake.parameters)[1:] == parameters


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_every_name_in_our_code_is_a_real_one(real: Any, path: Path) -> None:
    """This includes names in branches that no test takes."""
    names = re.findall(r"\b(?:trt|self\._trt)((?:\.\w+)+)", path.read_text(encoding="utf-8"))
    assert names or path.name == "engine.py"
    for name in names:
        value = real
        for part in name.removeprefix(".").split("."):
            value = getattr(value, part)


def test_our_logger_can_be_one(real: Any) -> None:
    from granalign_fast.runtime.tensorrt_library import logged_errors, logger

    log = logger(real)
    log.log(real.ILogger.Severity.WARNING, "not this")
    log.log(real.ILogger.Severity.ERROR, "two\nlines")
    assert logged_errors(log) == "two lines" and real.Logger is not None


def test_types_that_numpy_has(real: Any) -> None:
    for name, kind in fake_tensorrt.DataType.__members__.items():
        assert real.nptype(getattr(real.DataType, name)) is fake_tensorrt.nptype(kind)


def test_calls_name_their_parameters_by_position() -> None:
    """Our calls pass no keywords: their names are not compared with the real bindings."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                if owner in OWNERS:
                    assert not node.keywords, ast.unparse(node)
