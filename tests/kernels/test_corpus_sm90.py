"""The search of a library by what only Hopper has: emulated, and on such a GPU."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.corpora import check, check_exactly, unit, whole
from helpers.devices import call, emulated_hopper, forget_kernels
from helpers.emulator import Emulator

from granalign_fast.kernels import binary
from granalign_fast.kernels.corpus import FEW, Top, corpus
from granalign_fast.kernels.launch import CupyLauncher, source
from granalign_fast.kernels.tensor_map import TENSOR_MAP, encoded_map, mappable

DEVICES = [
    "emulated-hopper",
    "emulated-hopper-backwards",
    pytest.param("cuda", marks=pytest.mark.needs_cuda),
]
HALF = np.float16


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that have been launched."""
    names: list[str] = []
    for launcher in (Emulator, CupyLauncher):
        inner = launcher.launch

        def launch(self: Any, family: str, kernel: str, *rest: Any, _=inner, **more: Any) -> None:
            names.append(kernel)
            _(self, family, kernel, *rest, **more)

        monkeypatch.setattr(launcher, "launch", launch)
    return names


def searched(launched: list[str], device: str, asked: Any, clips: Any, k: int, **more: Any) -> Top:
    """By `many_sm90`, on a GPU that has it."""
    top = call(corpus, device, asked, clips, k=k, **more)
    has_it = True
    if device == "cuda":
        import cupy

        has_it = cupy.cuda.Device().compute_capability == "90"
    assert ("many_sm90" in launched) == has_it and ("many" in launched) != has_it
    return top


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("count", "clips", "dim", "k"),
    [
        (FEW + 1, 100, 384, 5),
        (33, 193, 8, 193),  # fewer numbers in a row than a box is wide
        (130, 700, 64, 30),  # two tiles of queries, three of clips
        (20, 1500, 512, 7),  # the longest rows, in three stages
        (65, 257, 72, 40),  # a box and an eighth
        (9, 6500, 136, 40),  # two segments, many rounds of the ring
        (129, 5200, 40, 1024),
    ],
)
def test_exact_numbers_give_exact_ties(
    launched: list[str], device: str, count: int, clips: int, dim: int, k: int
) -> None:
    rng = np.random.default_rng(clips)
    asked, rows = whole(rng, count, dim, HALF), whole(rng, clips, dim, HALF)
    check_exactly(searched(launched, device, asked, rows, k), asked, rows, k)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("count", "clips", "dim"), [(9, 300, 384), (70, 270, 512), (12, 40, 24)])
def test_equals_the_reference(
    launched: list[str], device: str, count: int, clips: int, dim: int
) -> None:
    rng = np.random.default_rng(count)
    asked, rows = unit(rng, count, dim, HALF), unit(rng, clips, dim, HALF)
    check(searched(launched, device, asked, rows, 10), asked, rows, 10)


@pytest.mark.parametrize("device", DEVICES)
def test_worst_first_in_the_least_memory(launched: list[str], device: str) -> None:
    """Every clip is better than all before it: more pass than a warp has room for."""
    k, clips, count = 50, 9000, 10
    ramp = np.zeros((clips, 16), HALF)
    ramp[:, 0], ramp[:, 1] = np.divmod(np.arange(clips), 1024)
    asked = np.zeros((count, 16), HALF)
    asked[:, :2] = 1024, 1
    top = searched(launched, device, asked, ramp, k, workspace=8 * count * (k + 4096))
    assert (top.rows == np.arange(clips - 1, clips - 1 - k, -1)).all()
    check_exactly(top, asked[:1], ramp, k)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_clips_rank_by_row(launched: list[str], device: str) -> None:
    rng = np.random.default_rng(0)
    clips = np.repeat(unit(rng, 1, 24, HALF), 5300, axis=0)
    top = searched(launched, device, unit(rng, 11, 24, HALF), clips, 300)
    assert (top.rows == np.arange(300)).all()
    assert (top.scores == top.scores[:, :1]).all()


@pytest.mark.parametrize("device", DEVICES)
def test_nan_ranks_first_and_names_its_clip(launched: list[str], device: str) -> None:
    rng = np.random.default_rng(0)
    asked, clips = unit(rng, 9, 16, HALF), unit(rng, 4200, 16, HALF)
    clips[4150, 11] = np.nan
    top = searched(launched, device, asked, clips, 5)
    assert (top.rows[:, 0] == 4150).all() and np.isnan(top.scores[:, 0]).all()
    assert np.isfinite(top.scores[:, 1:]).all()
    asked[0, 3] = np.nan
    top = searched(launched, device, asked, clips, 5)
    assert np.isnan(top.scores[0]).all() and top.rows[0].tolist() == [0, 1, 2, 3, 4]
    assert np.isfinite(top.scores[1:, 1:]).all()


def test_the_order_of_threads_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    asked, clips = unit(rng, 12, 32, HALF), unit(rng, 4500, 32, HALF)
    one, other = (call(corpus, device, asked, clips, k=70) for device in DEVICES[:2])
    assert one.scores.tobytes() == other.scores.tobytes()
    assert one.rows.tobytes() == other.rows.tobytes()


@pytest.mark.parametrize(("dtype", "dim"), [(np.float32, 8), (HALF, 12), (HALF, 520), (HALF, 7)])
def test_what_it_cannot_do_goes_another_way(launched: list[str], dtype: Any, dim: int) -> None:
    rng = np.random.default_rng(dim)
    asked, clips = whole(rng, 9, dim, dtype), whole(rng, 50, dim, dtype)
    check_exactly(call(corpus, "emulated-hopper", asked, clips, k=4), asked, clips, 4)
    assert "many" in launched and "many_sm90" not in launched


def test_no_clips(launched: list[str]) -> None:
    asked = np.ones((9, 8), HALF)
    top = call(corpus, "emulated-hopper", asked, np.zeros((0, 8), HALF), k=2)
    assert (top.rows == -1).all() and not {"many", "many_sm90"} & set(launched)


@pytest.mark.needs_cuda
def test_tensor_cores_without_hoppers_own(
    launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of other GPUs, with its widest loads."""
    rng = np.random.default_rng(0)
    asked, clips = whole(rng, 130, 64, HALF), whole(rng, 700, 64, HALF)
    monkeypatch.setattr(CupyLauncher, "tensor_map", lambda *_: None)
    check_exactly(call(corpus, "cuda", asked, clips, k=30), asked, clips, 30)
    assert "many" in launched and "many_sm90" not in launched


class Driver:
    """Takes down what it is asked to encode."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.asked = code, []

    def cuTensorMapEncodeTiled(self, target: Any, *given: Any) -> int:
        assert target.value % 64 == 0
        ctypes.memmove(target.value, b"encoded", 7)
        self.asked = [list(v) if isinstance(v, ctypes.Array) else v.value for v in given]
        return self.code


def test_what_the_driver_is_told() -> None:
    """By the order of arguments and the numbers of cuda.h."""
    matrix, driver = np.zeros((1000, 384), HALF), Driver()
    found = encoded_map(matrix, 256, driver)
    assert found.dtype == TENSOR_MAP and found.shape == (1,)
    assert found.tobytes().startswith(b"encoded")
    half, swizzled_128, l2_256 = 6, 3, 3
    address = matrix.ctypes.data
    assert driver.asked == [
        *(half, 2, address, [384, 1000], [768], [64, 256], [1, 1]),
        *(0, swizzled_128, l2_256, 0),
    ]
    with pytest.raises(RuntimeError, match="1000 x 384 float16: error 1"):
        encoded_map(matrix, 256, Driver(1))


def test_what_can_be_mapped() -> None:
    assert mappable(np.zeros((2, 8), HALF)) and mappable(np.zeros((2, 4), np.float32))
    assert not mappable(np.zeros((2, 12), HALF)) and not mappable(np.zeros((0, 8), HALF))
    assert not mappable(np.zeros(17, HALF)[1:].reshape(2, 8))


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    with emulated_hopper(monkeypatch, tmp_path / "kernels") as found:
        yield found


def test_through_cupy(cupy: Any, launched: list[str], tmp_path: Path) -> None:
    """Compiled once, and loaded from where CuPy keeps its own from then on."""
    rng = np.random.default_rng(0)
    asked, clips = whole(rng, 9, 64, HALF), whole(rng, 5000, 64, HALF)
    for compiled in (1, 0):
        fake_cupy.LOG.clear()
        top = corpus(cupy.asarray(asked), cupy.asarray(clips), k=3)
        check_exactly(Top(*map(np.asarray, top)), asked, clips, 3)
        assert fake_cupy.LOG.count("compile") == fake_cupy.LOG.count("destroy") == compiled
        forget_kernels()
    assert launched.count("many_sm90") == 4
    (kept,) = (tmp_path / "kernels").iterdir()
    text = kept.read_text(encoding="utf-8")
    assert text.startswith(source("corpus_sm90")) and text.endswith("-arch=sm_90a\n\0")


def test_other_gpus_have_no_maps(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = cupy.zeros((4, 8), HALF)
    assert CupyLauncher().tensor_map(matrix, 2) is not None
    for major, minor in ((8, 0), (8, 9), (10, 0), (12, 0)):
        monkeypatch.setattr(cupy.cuda.runtime, "gpus", [{"major": major, "minor": minor}])
        assert CupyLauncher().tensor_map(matrix, 2) is None


def test_another_compiler_compiles_anew(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = binary.kept_binary("text", ("-a",))
    assert binary.kept_binary("text", ("-a",)) == first
    assert binary.kept_binary("text", ("-b",)) != first
    monkeypatch.setattr(cupy.cuda.nvrtc, "version", (13, 1))
    assert binary.kept_binary("text", ("-a",)) != first
    assert fake_cupy.LOG.count("compile") == 3


def test_a_cache_that_cannot_be_written(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "kernels"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = binary.kept_binary("text", ())
    assert found.read_text(encoding="utf-8").startswith("text") and found.parent != tmp_path


def test_what_does_not_compile_says_why(cupy: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"kernel\.cu\(1\): error"):
        binary.kept_binary("#error", ("-a",))
    assert not (tmp_path / "kernels").exists() and fake_cupy.LOG == ["destroy"]
