"""Reports of measurements: records, comparisons, costs, pages and pictures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.bench.harness import plots
from granalign_fast.bench.harness.cost import costs
from granalign_fast.bench.harness.plots import draw_report
from granalign_fast.bench.harness.records import (
    LEAST_DIFFERENCE,
    Breakdown,
    Record,
    Report,
    SuiteRun,
    compare,
    other_machine,
    ratios_to_ours,
    tasks,
)
from granalign_fast.bench.harness.report import (
    duration,
    markdown,
    print_report,
    size,
    write_markdown,
)
from granalign_fast.bench.harness.timing import Samples
from granalign_fast.errors import GranAlignError


def record(task: str = "nms", median: float = 1.0, noise: float = 0.02, **fields: Any) -> Record:
    values = {"suite": "kernels", "median": median, "noise": noise, "samples": 24}
    values |= {
        "p90": median * 1.1,
        "p99": median * 1.2,
        "low": median * 0.99,
        "high": median * 1.01,
    }
    return Record(task=task, **values | fields)


def report(*records: Record, **fields: Any) -> Report:
    machine = {"cpu": "a | cpu", "cores": 2, "memory_bytes": 8 << 30, "load": [0.1, 0.2, 0.3]}
    machine |= {"system": "Linux", "python": "3.11", "packages": {"numpy": "2"}, "commit": "abc"}
    limits = {"bandwidth": 2e10, "rates": {"fp32": 1e11, "int8": 4e11}, "overhead": 0.0}
    suites_of_records = {
        record.suite: SuiteRun(1.0, 1 << 20, None, None, ["a note"]) for record in records
    }
    return Report(
        machine, {}, limits, **{"suites": suites_of_records} | fields, records=list(records)
    )


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (record(), record(), "same"),
        (record(), record(median=1.04), "same"),  # below `LEAST_DIFFERENCE`
        (record(), record(median=1.2), "slower"),
        (record(median=1.2), record(), "faster"),
        (record(noise=0.15), record(median=1.2, noise=0.1), "same"),  # within their noise
        # The machine has become slower, or faster, by a fifth.
        (record(yardstick=1.0), record(median=1.2, yardstick=1.2), "same"),
        (record(median=1.2, yardstick=1.2), record(yardstick=1.0), "same"),
        # The machine has changed the other way: the bound is not widened.
        (record(yardstick=1.2), record(median=1.2, yardstick=1.0), "slower"),
        (record(median=1.2, yardstick=1.0), record(yardstick=1.2), "faster"),
        (record(yardstick=1.0), record(median=1.3, yardstick=1.2), "slower"),
        (record(yardstick=1.0), record(median=1.2, yardstick=1.01), "slower"),
    ],
)
def test_a_change_beyond_the_noise_is_flagged(before: Record, after: Record, verdict: str) -> None:
    (change,) = compare(report(before), report(after))
    assert change.verdict == verdict
    assert change.bound >= LEAST_DIFFERENCE
    assert change.ratio == pytest.approx(after.median / before.median)


def test_noise_alone_is_not_flagged_and_one_slow_kernel_is() -> None:
    """Compares two runs of forty measurements, whose samples have noise of known size."""
    rng = np.random.default_rng(3)

    def measured(slowed: str | None = None) -> Report:
        records = []
        for i in range(40):
            true = (i + 1) * 1e-3 * (1.6 if f"stage {i}" == slowed else 1.0)
            passes = [tuple(true * rng.lognormal(0, 0.05, 12)) for _ in range(2)]
            samples = Samples(tuple(passes))
            records.append(Record.of(samples, suite="kernels", task=f"stage {i}"))
        return report(*records)

    base = measured()
    assert {change.verdict for change in compare(base, measured())} == {"same"}
    changes = compare(base, measured(slowed="stage 7"))
    assert [c.key for c in changes if c.verdict != "same"] == ["kernels / stage 7 / ours"]
    assert changes[0].verdict == "slower"


def test_only_ours_can_regress() -> None:
    base, now = ([record(), record(runner="loop", peer=True)] for _ in range(2))
    now = [dataclasses.replace(one, median=2 * one.median) for one in now]
    changes = compare(report(*base), report(*now))
    assert [(c.verdict, c.peer, c.regression) for c in changes] == [
        ("slower", False, True),
        ("slower", True, False),
    ]


def test_an_unsteady_machine_needs_a_greater_change() -> None:
    def run(median: float, *yardsticks: float) -> Report:
        others = [record(f"other {n}", yardstick=y) for n, y in enumerate(yardsticks)]
        return report(record(median=median, yardstick=1.0), *others)

    steady, unsteady = (1.0, 1.0), (1.0, 1.4)
    for yardsticks, verdict in ((steady, "slower"), (unsteady, "same")):
        (change,) = (c for c in compare(run(1.0, *yardsticks), run(1.2, *steady)) if "nms" in c.key)
        assert change.verdict == verdict
    assert compare(run(1.0, *unsteady), run(1.5, *unsteady))[0].verdict == "slower"


@pytest.mark.parametrize("setting", ["preset", "models", "random", "device", "size"])
def test_other_work_is_not_compared(setting: str) -> None:
    base, now = report(record()), report(record())
    base.settings, now.settings = {setting: "one"}, {setting: "other"}
    with pytest.raises(GranAlignError, match=f"base with {setting} 'one', expected 'other'"):
        compare(base, now)


def test_another_machine_is_named() -> None:
    base, now = report(record()), report(record())
    assert other_machine(base, now) is None
    now.machine["cores"] = 4
    assert other_machine(base, now) == "cores 2, now 4"
    now.machine |= {"cores": 2, "gpu": {"name": "H200"}}
    assert other_machine(base, now) == "gpu None, now H200"


def test_drift_is_the_variation_of_the_yardsticks() -> None:
    records = [record(yardstick=seconds) for seconds in (2.0, 2.5, 2.2)]
    assert report(*records).drift == pytest.approx(0.25)
    assert report(record()).drift == 0


def test_new_and_gone_measurements() -> None:
    base = report(record("a"), record("b"), record("c", suite="decode"))
    verdicts = {c.key: c.verdict for c in compare(base, report(record("b"), record("d")))}
    # The suite `decode` did not run this time, so its records are not gone.
    assert verdicts == {
        "kernels / a / ours": "gone",
        "kernels / b / ours": "same",
        "kernels / d / ours": "new",
    }


def test_records_of_different_sizes_are_different_measurements() -> None:
    small, large = (record(parameters={"clips": clips}) for clips in (75, 1000))
    assert small.key != large.key
    assert [len(members) for _, members in tasks([small, large, record()])] == [1, 1, 1]


def test_ratios_are_times_per_item() -> None:
    ours = record(median=2.0, items=256)
    loop = record(median=1.0, items=16, runner="loop", peer=True)
    assert ratios_to_ours([ours, loop]) == {"ours": 1.0, "loop": 8.0}
    assert record(median=2.0, limit=0.5).reached == 0.25


def whole_report() -> Report:
    """Return a report with every kind of contents."""
    records = [
        record("search", median=2e-3, items=256, unit="query", limit=1e-4, bound="bytes"),
        record("search", median=1e-2, items=16, unit="query", runner="loop", peer=True),
        *(
            record(
                task="answer queries",
                suite="throughput",
                runner=runner,
                items=32,
                unit="query",
                parameters={"clients": clients},
            )
            for clients in (1, 2, 4)
            for runner in ("ours", "ours, one batch")
        ),
        *(
            record("wait for an answer", suite="throughput", parameters={"clients": clients})
            for clients in (1, 2, 4)
        ),
        *(
            record(
                "clips: similarity", suite="scaling", items=n, median=n * 1e-6, limit=n * 1e-7,
                bound="bytes", parameters={"clips": n},
            )
            for n in (75, 1000)
        ),
    ]  # fmt: skip
    constants = {
        "index_seconds_per_clip": 0.1,
        "index_bytes_per_clip": 1000.0,
        "embed_seconds_per_query": 0.01,
        "kernel_seconds_per_clip": 1e-6,
    }
    suites = {
        "kernels": SuiteRun(2.0, 1 << 20, 1 << 21, None, ["a note | with a bar"], constants),
        "throughput": SuiteRun(1.0, 1 << 20),
        "scaling": SuiteRun(1.0, 1 << 20, failure="clips: not the reference's"),
    }
    result = report(*records, suites=suites, absent={"torch (kernels)": "pip install torch"})
    stages = {"embed": 0.01, "similarity": 0.002, "nms": 1e-6}
    result.breakdowns = [Breakdown("kernels", "a query", stages)]
    return result


def test_a_report_survives_json(tmp_path: Path) -> None:
    result = whole_report()
    result.write(tmp_path / "run.json")
    assert Report.read(tmp_path / "run.json") == result
    assert result.failures == {"scaling": "clips: not the reference's"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "got format version 99"),
        ({"records": [{"suite": "kernels"}]}, "not a report"),
        ({"more": 1}, "not a report"),
        ({"suites": []}, "not a report"),
        ({"machine": {}}, "not a report"),
        ({"limits": {}}, "not a report"),
        ({"records": [dataclasses.asdict(record()) | {"median": "1 ms"}]}, "not a report"),
        ({"records": [dataclasses.asdict(record()) | {"median": float("inf")}]}, "not finite"),
    ],
)
def test_an_invalid_report_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "run.json"
    whole_report().write(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(GranAlignError, match=message):
        Report.read(path)


def test_the_cost_of_a_library_by_hand() -> None:
    result = {(one.hours, one.queries): one for one in costs(whole_report())}
    assert max(result)[0] == 1_000_000
    one = result[100, 10.0]
    clips = 100 * 1800
    assert one.index_seconds == pytest.approx(0.1 * clips)
    assert one.index_bytes == 1000 * clips
    assert one.memory_bytes == clips * 384 * 4
    assert one.query_seconds == pytest.approx(0.01 + 1e-6 * clips)
    assert one.machines == pytest.approx(10 * (0.01 + 1e-6 * clips))
    assert one.prefix_bytes is None
    assert costs(report(record())) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (4.2e-8, "42 ns"), (1.5e-5, "15 µs"), (0.25, "250 ms"), (90, "90 s"),
     (180, "3 min"), (7200, "2 h"), (86400 * 3, "3 days"), (86400 * 365 * 8, "8 years"),
     (9.996e-4, "1 ms"), (0.9996, "1 s"), (9.99e-4, "999 µs"), (86400 * 365 * 1500, "1,500 years")],
)  # fmt: skip
def test_durations_are_short(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_sizes_are_short() -> None:
    assert [size(n) for n in (None, 12, 1500, 2.5e6, 3e9, 4e12)] == [
        *("", "12 B", "1.5 kB", "2.5 MB", "3 GB", "4 TB")
    ]


def test_the_page_has_every_suite_and_complete_tables(tmp_path: Path) -> None:
    result = whole_report()
    lines = markdown(result, ["plots/scaling.png"])
    text = "\n".join(lines)
    for part in ("## kernels", "## throughput", "![scaling](plots/scaling.png)", "**Failed:**"):
        assert part in text
    assert "1,000,000" in text and "pip install torch" in text
    wide = 0
    for line in lines:
        if line.startswith("|"):
            wide = wide or line.replace("\\|", "").count("|")
            assert line.replace("\\|", "").count("|") == wide, line
        else:
            wide = 0
    write_markdown(result, tmp_path / "RESULTS.md", ["plots/scaling.png"])
    assert (tmp_path / "RESULTS.md").read_text(encoding="utf-8") == text + "\n"


def test_the_terminal_shows_peers_failures_and_absent_peers(capsys: Any) -> None:
    print_report(whole_report())
    shown = capsys.readouterr().out
    for part in ("loop *", "80.00x", "scaling failed", "not installed", "5.0% (bytes)", "a note"):
        assert part in shown, part


def test_only_pictures_with_figures_are_drawn(tmp_path: Path) -> None:
    paths = draw_report(whole_report(), tmp_path / "plots")
    names = ["where-the-time-goes", "throughput", "scaling", "limits"]
    assert [path.stem for path in paths] == names
    assert all(path.stat().st_size > 10_000 for path in paths)
    assert draw_report(report(record()), tmp_path / "none") == []


def test_a_bar_that_is_much_longer_has_an_axis_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    result = report(record())
    lengths = {"warm": 0.2, "cold start": 1.45, "captions": 0.06}
    result.breakdowns = [
        Breakdown("search", name, {"embed": 0.05, "nms": 1e-5, "other": length - 0.05})
        for name, length in lengths.items()
    ] + [Breakdown("index", "a clip", {"decode": 0.004, "embed": 0.004})]
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    draw_report(result, tmp_path)
    bars = [[label.get_text() for label in axes.get_yticklabels()] for axes in figures[0].axes]
    assert bars == [["warm", "captions"], ["cold start"], ["a clip"]]
    units = [axes.get_xlabel() or axes.xaxis.get_label().get_text() for axes in figures[0].axes]
    assert units == ["search: ms", "search: s", "index: ms"]
    legends = [[t.get_text() for t in axes.get_legend().get_texts()] for axes in figures[0].axes]
    small = ["embed", "other", "less than 1%"]
    assert legends == [small, small, ["decode", "embed"]]


def test_bars_of_one_task_are_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes = ({"caches": "warm"}, {"model": "llama", "layers": 1}, {"model": "llama", "layers": 4})
    result = report(
        *(record(limit=0.5, bound="bytes", parameters=sizes_of_one) for sizes_of_one in sizes)
    )
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    draw_report(result, tmp_path)
    labels = [label.get_text() for label in figures[-1].axes[0].get_yticklabels()]
    assert labels == ["nms, ours, warm", "nms, llama, 1 layer, ours", "nms, llama, 4 layers, ours"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GranAlignError, match="cannot be made"):
        draw_report(whole_report(), tmp_path / "file" / "plots")


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        record().median = 0.0  # type: ignore[misc]


def test_a_report_of_somebody_else_is_shown_without_escapes_and_tags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " \x1b[2J\u202e[/red]<script>alert(1)</script>"
    run = SuiteRun(1.0, 1 << 20, None, text, [text, ""])
    spoilt = report(record(), record(task=text), suites={"kernels": run})
    spoilt.machine["cpu"] = text
    spoilt.write(tmp_path / "run.json")
    read = Report.read(tmp_path / "run.json")
    print_report(read)
    page = "\n".join(markdown(read))
    shown = capsys.readouterr().out + page
    assert "\x1b[2J" not in shown and "\u202e" not in shown
    assert "<script" not in page and "&lt;script" in page
