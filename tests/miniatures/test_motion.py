"""Clips of several frames: the miniature of motion finds what no single frame shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from granalign_fast.bench.commands import motion as command
from granalign_fast.index import VideoIndex
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.miniatures import (
    MOTION_MODELS,
    NAMES,
    motion,
    motion_benchmark,
    motion_clips,
)
from granalign_fast.miniatures.benchmark import FIRST_SEED
from granalign_fast.miniatures.motion_clips import Form
from granalign_fast.miniatures.provenance import miniatures_named
from granalign_fast.models.manifest import (
    VlmManifest,
    exported_models,
    model_sources,
    read_manifest,
)
from granalign_fast.pipeline import ModelFolder, open_models
from granalign_fast.types import FrameSet

VIDEOS = 3


# --- shots, films and training clips ---


@pytest.mark.parametrize("pair", motion.OPPOSITES)
def test_opposites_show_the_same_frames_in_another_order(pair: tuple[str, str]) -> None:
    shot = motion.sample_shot(np.random.default_rng(0), [("red", "square", pair[0])])
    (mover,) = shot.movers
    other = replace(mover, motion=pair[1])
    times = np.linspace(0.05, motion.SHOT_SECONDS - 0.05, 8).tolist()
    if mover.events:  # one comes when the other goes
        other = replace(other, events=tuple(motion.SHOT_SECONDS - t for t in mover.events))
    for time in times:
        frame = motion.render(shot, time)
        back = motion.render(replace(shot, movers=(other,)), motion.SHOT_SECONDS - time)
        assert np.abs(frame.astype(int) - back).max() <= 1
    first, last = (motion.render(shot, time).astype(int) for time in (times[0], times[-1]))
    assert np.abs(first - last).max() > 50


def test_a_query_is_true_of_one_shot() -> None:
    for seed in range(20):
        film = motion_benchmark.write_film(seed)
        assert len(set(film.queries)) == len(film.shots) == 8
        for number, query in enumerate(film.queries):
            shown = [i for i, shot in enumerate(film.shots) if query in shot.caption(moving=True)]
            assert shown == [number]
            # The thing itself is in four shots, so without its motion a query has four answers.
            thing = query.removesuffix(motion.PHRASES[film.motions[number]]).strip()
            assert sum(thing in shot.caption(moving=False) for shot in film.shots) == 4
        for motions in (film.motions[::2], film.motions[1::2]):
            assert any(set(pair) <= set(motions) for pair in motion.OPPOSITES)
    assert motion_benchmark.write_film(3) == motion_benchmark.write_film(3)


def test_labels_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A square moves right through a row of cells; a star appears in another one."""
    middle, corner, plain = ((56.0, 14.0),), ((98.0, 98.0),), (0.0, 0.0, 0.0)
    square = motion.Mover("square", "red", "right", middle, 12.0, 0.0, 12.0, (), plain)
    star = motion.Mover("star", "blue", "appears", corner, 12.0, 0.0, 0.0, (1.0,), plain)
    shot = motion.Shot((square, star), (135.0, 135.0, 135.0))
    monkeypatch.setattr(motion, "sample_shot", lambda rng: shot)
    # 6 s long: the clip is the whole shot, at 0.75, 2.25, 3.75 and 5.25 s.
    clips = motion_clips.draw(np.random.default_rng(0), 1, Form(4, 6.0))
    words = motion_clips.LABEL_WORDS
    names = [
        {
            cell: tuple(some[value] for value, some in zip(values, words, strict=True))
            for cell, values in enumerate(grid)
            if values[0] > 0
        }
        for grid in clips.labels[0].tolist()
    ]
    # The square's mean centres: 56 + 12 * (1.5 - 3) = 38, and 74 pixels across.
    assert names == [
        {1: ("square", "red", "right"), 15: ("star", "blue", "appears")},
        {2: ("square", "red", "right"), 15: ("star", "blue", "still")},
    ]
    outcome = {cell: tuple(v) for cell, v in enumerate(clips.outcome[0].tolist()) if v[0] > 0}
    right, appears = (motion.MOTIONS.index(name) + 1 for name in ("right", "appears"))
    assert outcome == {2: (2, 1, right), 15: (4, 3, appears)}  # 56 + 12 * (5.2 - 3) = 82.4
    # A frame alone says nothing of motion.
    alone = motion_clips.draw(np.random.default_rng(0), 1, Form(1, 6.0))
    assert (alone.labels[..., 2] < 1).all() and (alone.labels[..., 0] > 0).sum() == 2
    assert np.array_equal(alone.pairs[:, :, 0], alone.pairs[:, :, 1])


# --- the model of the package ---


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, str]]:
    folder = tmp_path_factory.mktemp("motion")
    return folder, motion_benchmark.write_benchmark(folder, VIDEOS)


def test_several_frames_find_what_one_does_not(
    films: tuple[Path, dict[int, str]], minilm: Path
) -> None:
    """On 20 videos R1@0.5 is 94.4 with four frames and 23.1 with one."""
    models = ModelFolder(MOTION_MODELS)
    one, four = (command.measure(models, *films, frames=frames) for frames in (1, 4))
    assert four["MR-full-R1@0.5"] >= 80, four
    assert one["MR-full-R1@0.5"] <= 50, one


def test_captions_tell_motion_of_clips_alone(
    films: tuple[Path, dict[int, str]], minilm: Path
) -> None:
    folder, _ = films
    models = open_models("motion-miniature", prefix_gib=0)
    video = folder / "videos" / f"motion-{FIRST_SEED}.mp4"
    film = motion_benchmark.write_film(FIRST_SEED)
    told = {}
    for frames in (1, 4):
        models.index([video], folder / f"captions-{frames}", frames_per_clip=frames)
        index = VideoIndex.load(folder / f"captions-{frames}" / video.stem)
        captions = index.video.captions or ()
        told[frames] = [query in captions[3 * i + 1] for i, query in enumerate(film.queries)]
    assert not any(told[1]) and sum(told[4]) >= 6, told


@pytest.mark.parametrize("frames", [2, 4])
def test_frames_in_reverse_show_the_opposite(frames: int) -> None:
    """Two frames are one patch in time, so the vision tower must tell which comes first."""
    captioner = open_models("motion-miniature", prefix_gib=0).captioner
    assert isinstance(captioner, VlmCaptioner)
    rng = np.random.default_rng(7)
    right = []
    for pair in (("left", "right"), ("up", "down"), ("grows", "shrinks")):
        for colour, shape in (("red", "square"), ("blue", "star"), ("green", "circle")):
            shot = motion.sample_shot(rng, [(colour, shape, pair[0])])
            times = motion.frame_times(2.0, 2.0, frames)
            clip = np.stack([motion.render(shot, time) for time in times])
            queries = [shot.movers[0].says(name) for name in pair]
            seen = FrameSet.of([clip, clip[::-1]], frame_seconds=2.0 / frames)
            (one, one_reversed), (other, other_reversed) = captioner.recognise(seen, queries)
            right += [one > other, other_reversed > one_reversed]
    assert sum(right) >= 16, right  # of 18


def test_pairs_of_frames_in_another_order_show_the_opposite() -> None:
    """A shape that comes between two pairs of frames stands still within each of them."""
    captioner = open_models("motion-miniature", prefix_gib=0).captioner
    assert isinstance(captioner, VlmCaptioner)
    rng = np.random.default_rng(8)
    right = []
    for colour in motion.COLOUR_NAMES:
        for shape in motion.SHAPES:
            shot = motion.sample_shot(rng, [(colour, shape, "appears")])
            shot = replace(shot, movers=(replace(shot.movers[0], events=(1.0, 3.0, 5.0)),))
            frames = [motion.render(shot, time) for time in motion.frame_times(0.0, 2.0, 4)]
            seen = FrameSet.of(
                [np.stack(frames), np.stack(frames[2:] + frames[:2])], frame_seconds=0.5
            )
            queries = [shot.movers[0].says(name) for name in ("appears", "disappears")]
            (comes, comes_swapped), (goes, goes_swapped) = captioner.recognise(seen, queries)
            right += [comes > goes, goes_swapped > comes_swapped]
    assert sum(right) >= 26, right  # of 32


def test_it_is_known_for_a_miniature() -> None:
    for name, folder in NAMES.items():
        sources = [sha256 for _, sha256 in model_sources(exported_models(folder)).values()]
        assert all(miniatures_named([sha256]) == name for sha256 in sources)
    assert miniatures_named(["0" * 64]) is None
    size = sum(path.stat().st_size for path in MOTION_MODELS.rglob("*") if path.is_file())
    assert size < 3e6


# --- against transformers ---


# Version 4.57 cuts the seconds of a grid to whole ones. Version 5 lets text follow the rows of a
# clip, not its times, which are then as in the product where they are no greater.
FORMS = {
    4: (Form(1, 2.0), Form(2, 2.0), Form(4, 2.0), Form(6, 3.0)),
    5: (Form(1, 2.0), Form(2, 2.0), Form(4, 1.5), Form(6, 1.0)),
}


@pytest.mark.needs_torch
@pytest.mark.parametrize("number", range(4))
def test_training_sees_a_clip_as_transformers_does(number: int) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    form = FORMS[int(transformers.__version__[0])][number]
    from granalign_fast.export.checks.transformers_calls import grid_times, image_tokens
    from granalign_fast.miniatures import batches, train_motion, train_vlm, vlm

    model, words = train_motion.build(0).eval(), train_motion.tokenizer()
    texts = vlm.Prompts(words, train_motion.layout(form, words))
    rng = np.random.default_rng(0)
    clips = motion_clips.draw(rng, 2, form)
    rows = [batches.Row(texts.heads, motion_clips.segments(texts, s, rng)) for s in clips.shots]
    packed = batches.pack(rows, root=texts.root, first=texts.first)
    labels = torch.nn.Linear(train_motion.WIDTH, sum(motion_clips.LABELS))
    looker = train_motion.Looker(model, labels)
    with torch.no_grad():
        features, _, _ = looker(clips)
        spoken = train_vlm.Speaker(model, texts)(features, packed)
        ours = model.lm_head(spoken.last).log_softmax(-1)
        model.model.language_model.config._attn_implementation = "sdpa"
        for clip, row in enumerate(rows):
            offset = sum(map(len, row.heads))
            patches = torch.from_numpy(vlm.pair_patches(clips.pairs[clip])).flatten(0, 1)
            grid = torch.tensor([[form.grids, 2 * vlm.GRID, 2 * vlm.GRID]])
            for segment in row.segments:
                size = len(segment.answer)
                prompt = [*row.heads[segment.head], *segment.prompt]
                ids = torch.tensor([[*texts.start.ids, *prompt, *segment.answer]])
                inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
                if form.frames == 1:
                    inputs |= {"pixel_values": patches, "image_grid_thw": grid}
                else:
                    inputs |= {"pixel_values_videos": patches, "video_grid_thw": grid}
                    inputs |= grid_times(model, [2 * form.gap])
                lone = model(**inputs, **image_tokens(model, ids)).logits
                last = offset + len(segment.prompt) - 1 if segment.prompt else len(row.heads[0]) - 1
                offset += len(segment.prompt)
                columns = [last, *range(offset, offset + size - 1)]
                offset += size
                expected = lone[0, -size - 1 : -1].log_softmax(-1)
                torch.testing.assert_close(ours[clip, columns], expected, atol=1e-4, rtol=0)


@pytest.mark.needs_torch
def test_a_trained_model_can_be_exported(tmp_path: Path) -> None:
    """A few steps of training give a folder whose prompts and clips the exporter takes."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from granalign_fast.export.checks.prompts import check_prompts
    from granalign_fast.export.families import read_vlm
    from granalign_fast.miniatures import train, train_motion

    source = check_prompts(read_vlm(train.train("motion", tmp_path, scale=0.001), (112, 112)))
    assert set(source.layouts) == {1, 2, 4, 6}
    words = train_motion.tokenizer()
    for form in motion_clips.FORMS:
        if form.frames > 1:
            timed = source.layouts[form.frames].timed(form.gap, words.encode)
            assert timed == train_motion.layout(form, words)
    manifest = read_manifest(MOTION_MODELS / "vlm")
    assert isinstance(manifest, VlmManifest) and set(manifest.layouts) == {"1", "2", "4", "6"}
