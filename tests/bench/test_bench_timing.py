"""Samples and races: statistics against known numbers, new inputs, wrong answers."""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Any

import numpy as np
import pytest

from granalign_fast.bench.harness import timing
from granalign_fast.bench.harness.limits import Yardstick
from granalign_fast.bench.harness.timing import (
    FEWEST_ROUNDS,
    PASSES,
    YARDSTICK,
    Rounds,
    Samples,
    WrongAnswerError,
    accept_any,
    difference,
    median_interval,
    race,
    require,
)
from granalign_fast.errors import GranAlignError


class CountingClock:
    """Takes a call's output as its seconds, so that times are exact."""

    def time(self, run: Any, inputs: Any) -> tuple[float, Any]:
        output = run(inputs)
        return float(output), output


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([3.0], 3.0, 3.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0, 5.0),  # five samples cannot give 95%: their range
        (range(1, 7), 1, 6),  # 1 - 2 / 2^6 is the first above 95%
        (range(1, 11), 2, 9),  # the textbook's pair of ranks for each of these numbers
        (range(1, 21), 6, 15),
        (range(1, 31), 10, 21),
        (range(1, 101), 40, 61),
    ],
)
def test_the_interval_of_the_median_agrees_with_the_textbook(
    values: Any, low: float, high: float
) -> None:
    shuffled = np.random.default_rng(0).permutation(list(values)).tolist()
    assert median_interval(tuple(shuffled)) == (low, high)


def test_the_interval_covers_the_median_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    true = float(np.log(2))  # the median of an exponential distribution, as skewed as times are
    bounds = [median_interval(tuple(rng.exponential(size=24))) for _ in range(2000)]
    covered = np.mean([low <= true <= high for low, high in bounds])
    assert 0.945 <= covered <= 0.99


def test_statistics_of_samples_agree_with_numpy() -> None:
    rng = np.random.default_rng(2)
    first, second = rng.uniform(1, 2, 15), rng.uniform(1.5, 2.5, 15)
    samples = Samples((tuple(first), tuple(second)))
    both = np.concatenate([first, second])
    assert samples.median == np.median(both)
    assert samples.quantile(0.9) == np.percentile(both, 90)
    expected = np.median(second) / np.median(first) - 1
    assert samples.pass_difference == pytest.approx(expected)
    assert samples.noise >= samples.pass_difference
    low, high = samples.interval()
    assert samples.noise >= (high - low) / 2 / samples.median


def test_a_pass_without_samples_is_refused() -> None:
    with pytest.raises(GranAlignError, match=r"got \[2, 0\]"):
        Samples(((1.0, 2.0), ()))


def test_each_round_has_a_new_input_the_same_for_all_runners() -> None:
    draws: list[float] = []
    seen: dict[str, list[float]] = {"one": [], "two": []}
    judged: list[float] = []

    def draw(rng: np.random.Generator) -> float:
        draws.append(float(rng.uniform(1, 2)))
        return draws[-1]

    def runner(name: str) -> Any:
        return lambda inputs: seen[name].append(inputs) or inputs

    def judge(inputs: float, outputs: Any) -> None:
        judged.append(inputs)
        assert outputs == {"one": inputs, "two": inputs}

    runners = {name: runner(name) for name in seen}
    samples = race(runners, draw, judge, rounds=Rounds(most=5, seconds=60), clock=CountingClock())
    assert len(set(draws)) == len(draws) == 1 + PASSES * 5
    assert seen["one"] == seen["two"] == draws
    assert judged == [draws[0], draws[5], draws[10]]
    assert samples["one"].seconds == tuple(draws[1:])
    assert samples["one"].noise > 0


def test_caches_are_warmed_and_flushed_before_a_run() -> None:
    counts = dict.fromkeys(("warm", "cold", "plain", "flush"), 0)

    def count(what: str) -> Any:
        counts[what] += 1
        return 1.0

    def runner(name: str) -> Any:
        return lambda _: count(name)

    race(
        *({name: runner(name) for name in ("warm", "cold", "plain")}, lambda rng: 0),
        accept_any,
        rounds=Rounds(most=4, seconds=60, flush=lambda: count("flush")),
        caches={"warm": "warm", "cold": "cold"},
    )
    timed = PASSES * 4
    assert counts == {"warm": 1 + 2 * timed, "cold": 1 + timed, "plain": 1 + timed, "flush": timed}


def test_the_yardstick_is_timed_in_each_round() -> None:
    rounds = Rounds(most=4, seconds=60)
    samples = race(
        *({"a": lambda inputs: inputs}, lambda rng: 3.0, accept_any),
        rounds=rounds,
        clock=CountingClock(),
        yardstick=lambda nothing: 2.0,
    )
    assert samples["a"].seconds == (3.0,) * PASSES * 4
    assert samples[YARDSTICK].seconds == (2.0,) * PASSES * 4
    one, again, three = (Yardstick(np.asarray, n)(None) for n in (1, 1, 3))
    assert one == again == pytest.approx(three / 3)


def test_a_runner_waits_until_other_threads_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        timing, "_WINDOW", 0.05
    )  # on a busy machine a thread may be paused that long
    monkeypatch.setattr(timing, "_LONGEST_REST", 60.0)
    block, spinning = bytes(1 << 25), []

    def spin() -> None:
        while time.thread_time() < 0.1:
            hashlib.sha256(block)  # releases the interpreter's lock, as a pool's threads do

    def leaves_a_thread(_: Any) -> int:
        spinning.append(threading.Thread(target=spin))
        spinning[-1].start()
        return 1

    class WatchingClock(CountingClock):
        def time(self, run: Any, inputs: Any) -> tuple[float, Any]:
            alive.append(sum(thread.is_alive() for thread in spinning))
            return super().time(run, inputs)

    alive: list[int] = []
    runners = {"spins": leaves_a_thread, "rests": lambda _: 1}
    race(
        *(runners, lambda rng: 0, accept_any),
        rounds=Rounds(most=3, seconds=0),
        clock=WatchingClock(),
    )
    assert alive == [0] * 2 * 3 * PASSES


def test_a_race_out_of_time_still_has_the_least_number_of_rounds() -> None:
    samples = race({"a": lambda _: 1}, lambda rng: 0, accept_any, rounds=Rounds(seconds=0))
    assert [len(seconds) for seconds in samples["a"].passes] == [FEWEST_ROUNDS] * PASSES


def test_a_wrong_answer_ends_a_race() -> None:
    def judge(inputs: Any, outputs: Any) -> None:
        require(outputs["a"] == inputs, "a: not what went in")

    with pytest.raises(WrongAnswerError, match="a: not what went in: the times mean nothing"):
        race({"a": lambda inputs: inputs + 1}, lambda rng: 1, judge, rounds=Rounds())


def test_a_difference_is_of_paired_rounds() -> None:
    longer = Samples(((5.0, 9.0), (7.0, 1.0)))
    shorter = Samples(((1.0, 1.0), (1.0, 3.0)))
    samples = difference(longer, shorter, 4)
    assert samples.passes == ((1.0, 2.0), (1.5, -0.5))
    assert samples.noise >= samples.pass_difference == pytest.approx((1.5 - 0.5) / 0.5)
    # The passes have medians of -0.5 and 1.5, all samples 1.25: the difference is unreliable.
    assert Samples(((-0.5,), (1.0, 1.5, 2.0))).pass_difference == pytest.approx(2 / 1.25)
