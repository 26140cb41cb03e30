"""Scenes and their language: texts about a frame are true of its pixels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.language import prompts
from granalign_fast.miniatures import (
    drawing,
    language,
    meaning,
    pool,
    queries,
    scenes,
    wordlevel,
    words,
)

SPLITS = ("train", "validation", "test")


def many_scenes(split: scenes.Split, count: int = 150) -> list[scenes.Scene]:
    rng = np.random.default_rng(5)
    return [scenes.sample_scene(rng, split) for _ in range(count)]


def random_query(rng: np.random.Generator, split: scenes.Split) -> tuple[scenes.Scene, Any]:
    scene = scenes.sample_scene(rng, split)
    spec = meaning.sample_spec(rng, scene)
    return scene, queries.sample_query(rng, spec, scenes.pairs_of(split))


# --- scenes and pixels ---


def test_held_out_pairs_are_disjoint() -> None:
    test, validation = scenes.HELD_OUT["test"], scenes.HELD_OUT["validation"]
    assert not test & validation
    assert not (test | validation) & set(scenes.pairs_of("train"))
    for held_out in (test, validation):
        assert {shape for shape, _ in held_out} == set(scenes.SHAPES)  # each once
        assert len({colour for _, colour in held_out}) == len(held_out) == len(scenes.SHAPES)
    with pytest.raises(GranAlignError, match="split: got 'dev', expected one of train, val"):
        scenes.pairs_of("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_draws_only_its_own_pairs(split: scenes.Split) -> None:
    pairs_of_scenes = [{(t.shape, t.colour) for t in scene.things} for scene in many_scenes(split)]
    assert set().union(*pairs_of_scenes) <= set(scenes.pairs_of(split))
    if split != "train":
        assert all(pairs & scenes.HELD_OUT[split] for pairs in pairs_of_scenes)


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_names_only_its_own_pairs(split: scenes.Split) -> None:
    """True and false queries, captions and contexts never name a pair of another split."""
    foreign = set(scenes.PAIRS) - set(scenes.pairs_of(split))
    banned = {
        f" {colour} {shape} "
        for pair in foreign
        for colour in words.SAYINGS[pair[1]]
        for one in words.SAYINGS[pair[0]]
        for shape in (one, words.plural(one))
    }
    rng = np.random.default_rng(0)
    texts = []
    for _ in range(300):
        scene, query = random_query(rng, split)
        wrong = meaning.falsified(rng, query.spec, scene, scenes.pairs_of(split))
        texts += [query.text, *language.detailed(query), language.agnostic_caption(scene)]
        texts += [queries.phrase(rng, wrong).text] if wrong else []
    assert not [text for text in texts if any(pair in f" {text} " for pair in banned)]


def test_drawing_repeats_itself_and_moves() -> None:
    scene = scenes.sample_scene(np.random.default_rng(1))
    assert scene == scenes.sample_scene(np.random.default_rng(1))
    one, later = scenes.render(scene), scenes.render(scene, 2.0)
    assert one.shape == (112, 112, 3) and one.dtype == np.uint8
    np.testing.assert_array_equal(one, scenes.render(scene))
    assert (one != later).any()


@pytest.mark.parametrize("shape", [shape for shape in scenes.SHAPES if shape != "ring"])
@pytest.mark.parametrize("colour", ["red", "blue", "white"])
def test_colours_are_red_green_blue(shape: str, colour: str) -> None:
    scene = scenes.compose(np.random.default_rng(3), [(shape, colour, "giant", 1)], "gray", "plain")
    across, down = scene.things[0].centres(1.0)[0]
    seen = scenes.render(scene, 1.0)[round(down), round(across)]
    np.testing.assert_allclose(seen, scenes.COLOURS[colour], atol=14)


def test_shapes_have_their_areas() -> None:
    """Areas agree with geometry for radius 16, so no two shapes look the same."""
    areas = {
        "circle": np.pi,
        "square": 1.7**2,
        "triangle": 1.75,
        "star": 5 * 1.1 * 0.46 * np.sin(np.pi / 5),
        "cross": 2 * 0.68 * 2 - 0.68**2,
        "ring": np.pi * 0.75,
    }
    for shape in scenes.SHAPES:
        frame = np.zeros((112, 112, 3), np.float32)
        drawing.paint_shape(frame, shape, (1, 1, 1), (50.3, 61.8), 16.0, 0.1)
        assert frame[..., 0].sum() == pytest.approx(areas[shape] * 256, rel=0.03), shape


def test_objects_do_not_overlap_and_stay_in_the_frame() -> None:
    for scene, seconds in itertools.product(many_scenes("train", 60), (0.0, 3.1, 9.7)):
        boxes = [
            (*centre, thing.radius, thing.radius)
            for thing in scene.things
            for centre in thing.centres(seconds)
        ]
        if scene.word:
            width, height = drawing.sign_size(scene.word)
            boxes.append((*scene.sign_home, width / 2, height / 2))
        assert len(boxes) - (scene.word is not None) <= scenes.MOST_OBJECTS
        for x, y, width, height in boxes:
            assert width <= x + 2.6 and x - 2.6 <= 112 - width
            assert height <= y + 2.6 and y - 2.6 <= 112 - height
        for (x, y, w, h), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
            assert abs(x - x2) >= w + w2 or abs(y - y2) >= h + h2


def test_too_many_objects_are_refused() -> None:
    too_much: list[scenes.Kind] = [("circle", "red", "giant", 3), ("star", "blue", "giant", 3)]
    with pytest.raises(GranAlignError, match="do not fit into a frame; expected fewer or smaller"):
        scenes.compose(np.random.default_rng(0), too_much, "gray", "plain", "taxi")


def test_labels_describe_each_cell() -> None:
    pool_of_scenes = pool.draw(40, 7, grid=4)
    for scene, labels in zip(pool_of_scenes.scenes, pool_of_scenes.labels, strict=True):
        shapes = [t.shape for t in scene.things for _ in range(t.count)]
        shapes_of_labels = [scenes.SHAPES[i - 1] for i in labels[:, 0] if i]
        assert sorted(shapes_of_labels) == sorted(shapes)  # no two objects share a cell
        for thing in scene.things:
            if thing.place:
                row, column = divmod(int(np.argmax(labels[:, 0] == _number(thing.shape))), 4)
                quarter = scenes.PLACES[2 * (row > 1) + (column > 1)]
                others = [t for t in scene.things if t.shape == thing.shape]
                assert len(others) > 1 or quarter == thing.place
    again = pool.draw(40, 7, grid=4)
    np.testing.assert_array_equal(pool_of_scenes.frames, again.frames)


def _number(shape: str) -> int:
    return scenes.SHAPES.index(shape) + 1


def test_unnamed_colours_are_far_from_named_ones() -> None:
    """An unnamed colour near a named one would draw a held-out pair."""
    pool_of_scenes = pool.draw(60, 7, grid=4, unnamed=True)
    named = np.array(list(scenes.COLOURS.values()))
    for thing in (thing for scene in pool_of_scenes.scenes for thing in scene.things):
        colour = np.add(scenes.COLOURS[thing.colour], thing.tint)
        assert np.linalg.norm(named - colour, axis=1).min() > 60
    assert set(np.unique(pool_of_scenes.labels[..., 1])) == {-100, 0}


# --- language ---

ONE = scenes.compose(
    np.random.default_rng(0),
    [("circle", "red", "giant", 1), ("star", "blue", "tiny", 2)],
    "gray",
    "lines",
    "taxi",
    ("top left", None),
)


def test_captions() -> None:
    assert language.agnostic_caption(ONE) == (
        "a red circle and blue stars and a sign on a gray background"
    )
    circle = meaning.Spec((meaning.Mention("circle", "red", count=1),))
    assert language.aware_caption(ONE, language.Focus.of(circle)) == (
        "a giant red circle at the top left and blue stars and a sign on a gray background"
    )
    everything = language.Focus.of(meaning.full_spec(ONE))
    assert language.aware_caption(ONE, everything) == (
        "a giant red circle at the top left and two tiny blue stars and a sign that says taxi on "
        "a gray background with lines"
    )


def test_rewrites() -> None:
    query = replace(
        queries.phrase(np.random.default_rng(0), meaning.full_spec(ONE)),
        moving=True,
        context=queries.Context("after", meaning.Spec((meaning.Mention("ring", "red", None, 0),))),
    )
    full = (
        "a giant red circle at the top left and two tiny blue stars and a sign that says taxi on "
        "a gray background with lines after red rings"
    )
    assert language.simplified(query) == (
        "a red circle and blue stars and a sign on a gray background",
        "red circle and blue stars on gray",
        "a red circle and blue stars and a sign",
    )
    assert language.detailed(query) == (
        full,
        f"a video of {full} , moving",
        f"a frame with {full}",
    )
    assert language.entity_list(query) == (
        "entities : red circle , blue stars , sign , gray background\nactions : moving"
    )


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("shape", {"shape": "ring"}),
    ("colour", {"colour": "green"}),
    ("size", {"size": "tiny"}),
    ("count", {"count": 2, "place": None}),
    ("place", {"place": "bottom right"}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=[name for name, _ in CHANGES])
def test_a_spec_with_one_change_does_not_hold(name: str, change: dict[str, Any]) -> None:
    spec = meaning.full_spec(ONE)
    assert spec.holds(ONE)
    first, second = spec.mentions
    wrong = replace(spec, mentions=(replace(first, **change), second))
    assert not wrong.holds(ONE)


@pytest.mark.parametrize(
    "change", [{"sign": "zoo"}, {"background": "pink"}, {"texture": "spots"}], ids=str
)
def test_a_spec_with_other_surroundings_does_not_hold(change: dict[str, Any]) -> None:
    assert not replace(meaning.full_spec(ONE), **change).holds(ONE)


def test_a_changed_binding_does_not_hold() -> None:
    first, second = meaning.full_spec(ONE).mentions
    swapped = (replace(first, colour="blue"), replace(second, colour="red"))
    assert not meaning.Spec(swapped).holds(ONE)


def test_near_misses_change_one_demand_of_every_kind() -> None:
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        scene = scenes.sample_scene(rng)
        spec = meaning.sample_spec(rng, scene)
        assert spec.holds(scene)
        for kind in meaning.demands(spec):
            wrong = meaning.falsified(rng, spec, scene, scenes.pairs_of("train"), (kind,))
            if wrong:
                assert not wrong.holds(scene)
                seen.add(kind)
    everything = {"shape", "colour", "size", "place", "count", "sign", "background", "texture"}
    assert seen == everything | {"swap"}


def test_truth_of_all_words_so_far() -> None:
    """Each word adds a demand, so truth is lost at most once; the last truth is the query's."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene, query = random_query(rng, "train")
        other = scenes.sample_scene(rng)
        assert len(query.so_far) == len(query.text.split())
        for shown in (scene, other):
            truths = [spec.holds(shown) for spec in query.so_far if spec is not None]
            assert truths == sorted(truths, reverse=True)
            assert truths[-1] == query.spec.holds(shown)


def test_truth_of_each_word_alone() -> None:
    """A query is true of a scene exactly if it is true at every word."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene, query = random_query(rng, "train")
        other = scenes.sample_scene(rng)
        assert len(query.alone) == len(query.so_far)
        for shown in (scene, other):
            truths = [spec.holds(shown) for spec in query.alone if spec is not None]
            assert all(truths) == query.spec.holds(shown)


def test_every_word_and_prompt_has_a_token() -> None:
    vocabulary = set(wordlevel.words())
    rng = np.random.default_rng(0)
    texts = [prompts.SYSTEM, prompts.VISION_SYSTEM, prompts.AGNOSTIC_CAPTION]
    for _ in range(200):
        scene, query = random_query(rng, "test")
        focus = (*language.entities(query.spec), *language.actions(True))
        texts += [prompts.user_message(task, query.text) for task in prompts.SIMPLIFIED]
        texts += [prompts.recognition(query.text), prompts.aware_caption(focus)]
        texts += [*language.simplified(query), *language.detailed(query)]
        texts += [language.agnostic_caption(scene), language.entity_list(query)]
        texts.append(language.aware_caption(scene, language.Focus.of(query.spec)))
    assert {word for text in texts for word in wordlevel.split(text)} <= vocabulary
    assert len(vocabulary) < 400
