"""The simulated service, beside what queueing theory says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from granalign_fast.bench.commands.batch_queue import USUAL, fixed_share, simulate


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_without_batches_the_mean_wait_is_that_of_pollaczek_and_khinchine(load: float) -> None:
    """Of one server with equal times: 1 + load / (2 (1 - load))."""
    waits = simulate(0.0, load, batch=1, queue=1 << 20).waits
    assert sum(waits) / len(waits) == pytest.approx(1 + load / (2 * (1 - load)), rel=0.05)


def test_a_query_waits_for_the_batch_in_work_and_for_its_own() -> None:
    fixed = fixed_share(3.0, USUAL.batch)
    full = fixed + USUAL.batch * (1 - fixed)
    assert USUAL.batch / full == pytest.approx(3)
    over = simulate(fixed, 10.0)
    assert full < over.quantile(0.5) and max(over.waits) <= 2 * full
    assert over.refused == pytest.approx(0.9, abs=0.01)


def test_nothing_is_refused_or_waits_where_queries_are_rare() -> None:
    alone = simulate(0.5, 0.001)
    assert alone.refused == 0 and alone.quantile(0.5) == pytest.approx(1.0)


def test_the_guide_has_the_simulated_figures() -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "service.md"
    text = guide.read_text(encoding="utf-8")
    one_by_one = {load: simulate(0.0, load, batch=1, queue=1 << 20) for load in (0.5, 0.8)}
    p99 = {load: one.quantile(0.99) for load, one in one_by_one.items()}
    assert f"it is {p99[0.8]:.0f} times ({p99[0.5]:.1f} at 50%)" in text
    for gain in (1.0, 3.0):
        fixed = fixed_share(gain, USUAL.batch)
        usual, over = (simulate(fixed, load).quantile(0.99) for load in (0.8, 10.0))
        assert f"| {gain:g} | {usual:.1f} | {over / usual:.2f} |" in text
