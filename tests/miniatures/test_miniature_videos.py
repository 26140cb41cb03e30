"""Videos of rendered scenes: queries, files and annotations agree with what they show."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.metrics import load_ground_truth
from granalign_fast.miniatures import language, videos


@pytest.fixture(scope="module")
def scripts() -> list[videos.Script]:
    return [videos.write_script(seed, split="test") for seed in range(4)]


def test_windows_are_those_in_which_a_query_holds(scripts: list[videos.Script]) -> None:
    for script in scripts:
        assert 60 <= script.duration <= 100
        assert script.shots[0].start == 0
        for before, after in itertools.pairwise(script.shots):
            assert before.end == after.start
        for shot in script.shots:
            assert 4 <= shot.end - shot.start <= 16
        for query in script.queries:
            shown = {
                (shot.start, shot.end)
                for shot in script.shots
                if query.query.spec.holds(shot.scene)
            }
            assert set(query.windows) == shown
        assert len([query for query in script.queries if not query.windows]) == 6
        assert len([query for query in script.queries if query.windows]) == 12
    assert videos.write_script(3, split="test") == scripts[3]


def test_twins_differ_in_details_alone(scripts: list[videos.Script]) -> None:
    for script in scripts:
        captions = [language.agnostic_caption(shot.scene) for shot in script.shots]
        for query in script.queries[:12:4]:  # of a family, the query about both
            twins = [shot.scene for shot in script.shots if query.query.spec.holds(shot.scene)]
            assert len(twins) == 2
            focus = language.Focus.of(query.query.spec)
            assert len({language.agnostic_caption(scene) for scene in twins}) == 1
            assert len({language.aware_caption(scene, focus) for scene in twins}) == 2
            assert captions.count(language.agnostic_caption(twins[0])) == 2


def test_absent_queries_resemble_the_scenes(scripts: list[videos.Script]) -> None:
    for script in scripts:
        things = [t for shot in script.shots for t in shot.scene.things]
        for query in script.queries[-6:]:
            for mention in query.query.spec.mentions:
                assert any(
                    mention.colour == thing.colour or mention.shape == thing.shape
                    for thing in things
                )


def test_too_short_a_video_is_refused() -> None:
    with pytest.raises(GranAlignError, match=r"seconds: got \(10.0, 20.0\), expected bounds from"):
        videos.write_script(0, seconds=(10.0, 20.0))


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, videos.Script]:
    path = tmp_path_factory.mktemp("videos") / "one.mp4"
    return path, videos.render_video(path, 0, seconds=(60.0, 64.0), frame_rate=4)


def decoded(path: Path) -> Iterator[tuple[float, np.ndarray]]:
    import av

    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.time is not None
            yield frame.time, frame.to_ndarray(format="rgb24")


def test_a_video_shows_its_script(rendered: tuple[Path, videos.Script]) -> None:
    path, script = rendered
    frames = list(decoded(path))
    assert len(frames) == round(script.duration * 4)
    some = frames[1::17]
    expected = videos.frames_of(script, 0, [seconds for seconds, _ in some])
    for (_, frame), small in zip(some, expected, strict=True):
        assert frame.shape == (224, 224, 3)
        halved = frame.reshape(112, 2, 112, 2, 3).mean((1, 3))
        assert np.abs(halved - small).mean() < 6  # of 255: compression, and half the colours


def test_the_metrics_read_the_ground_truth(
    rendered: tuple[Path, videos.Script], tmp_path: Path
) -> None:
    _, script = rendered
    records = videos.ground_truth(script, "one", 7)
    path = tmp_path / "truth.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    assert load_ground_truth(path) == records
    assert [record["qid"] for record in records] == list(range(7, 19))
    for record in records:
        middles = 2.0 * np.array(record["relevant_clip_ids"]) + 1
        for middle in middles:
            assert any(start <= middle <= end for start, end in record["relevant_windows"])
        seconds = sum(end - start for start, end in record["relevant_windows"])
        assert abs(2 * len(middles) - seconds) <= 2 * len(record["relevant_windows"])


def test_a_video_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(GranAlignError, match="cannot be written"):
        videos.render_video(tmp_path / "none" / "one.mp4", 0)
    with pytest.raises(GranAlignError, match="side, frame_rate: got 7, 10; expected an even"):
        videos.render_video(tmp_path / "one.mp4", 0, side=7)
    assert not list(tmp_path.iterdir())


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match="writing a video needs the extra"):
        videos.render_video(tmp_path / "one.mp4", 0)
    assert not list(tmp_path.iterdir())
