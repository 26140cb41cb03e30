"""The search of libraries records every kernel variant, right or wrong, as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import fake_cupy
from helpers.devices import emulated_hopper

from granalign_fast.bench.harness import corpus_search as libraries
from granalign_fast.bench.harness.limits import Limits

SMALL = ((1, 300), (9, 400), (130, 300))
VARIANTS = {"streamed": [1], "products of warps": [9, 130], "products of warpgroups": [9, 130]}


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """CuPy's stand-in as a Hopper GPU; it measures no times, so they are fixed numbers."""

    def units(rows: int, dim: int, seed: int = 0) -> Any:
        return fake_cupy.asarray(
            np.random.default_rng(seed).integers(-1, 2, (rows, dim)).astype(np.float16)
        )

    monkeypatch.setattr(libraries, "LIBRARIES", SMALL)
    monkeypatch.setattr(libraries, "random_units", units)
    monkeypatch.setattr(libraries, "measure_limits", lambda _: Limits(1e9, {"fp16": 1e12}, 1e-6))
    times = {"seconds": 2.0, "seconds_in_graph": 1.0, "limit_seconds": 0.5, "bound": "bytes"}
    monkeypatch.setattr(libraries, "_timed", lambda *_: times)
    with emulated_hopper(monkeypatch, tmp_path) as stand_in:
        yield stand_in


@pytest.mark.parametrize(
    ("broken", "wrong"), [(None, 0), ("many", 2), ("many_sm90", 2), ("twin", 1)]
)
def test_every_variant_is_recorded(
    cupy: Any,
    broken: str | None,
    wrong: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    get_function, twin = fake_cupy.RawModule.get_function, libraries.corpus

    def get_or_fail(self: Any, name: str) -> Any:
        if name == broken:
            raise RuntimeError("no such kernel")
        return get_function(self, name)

    def other_twin(queries: Any, clips: Any, k: int) -> Any:
        top = twin(queries, clips, k=k)
        return top._replace(scores=top.scores + (broken == "twin" and len(queries) == 1))

    monkeypatch.setattr(fake_cupy.RawModule, "get_function", get_or_fail)
    monkeypatch.setattr(libraries, "corpus", other_twin)
    saved: list[int] = []
    results = libraries.measure_libraries(
        16, 3, lambda so_far: saved.append(len(so_far["libraries"]))
    )
    cases = results["libraries"]
    assert saved == [1, 2, 3, 4, 5]
    assert [(case["way"], case["queries"]) for case in cases] == [
        (variant, count) for variant, counts in VARIANTS.items() for count in counts
    ]
    assert sum("wrong" in case for case in cases) == wrong
    assert sum(case.get("seconds") == 2.0 for case in cases) == 5 - wrong
    printed = capsys.readouterr().out
    assert printed.count("50% of it") == 5 - wrong
    assert printed.count("no such kernel") == (2 if wrong == 2 else 0)
    assert printed.count("scores 1.0 off") == (broken == "twin")
