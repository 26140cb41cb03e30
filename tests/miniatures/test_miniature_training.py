"""Training of miniatures: packed rows against lone prompts, tokenizers, interrupted runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.transformers_calls import image_tokens, pooled
from granalign_fast.language import prompts
from granalign_fast.miniatures import batches as packing
from granalign_fast.miniatures import language, pool, scenes, train, wordlevel


def test_packed_rows_by_hand() -> None:
    segments = [
        packing.Segment(0, [], [7, 8], spared=[(1, 9)]),
        packing.Segment(1, [5], [6, 4], weights=[3.0, 0.5], truths=[(1, 0)]),
    ]
    packed = packing.pack([packing.Row([[1, 2], [3]], segments)], root=2, first=10)
    assert packed.ids.tolist() == [[1, 2, 3, 7, 8, 5, 6, 4]]
    assert packed.positions.tolist() == [[10, 11, 10, 12, 13, 11, 12, 13]]
    assert packed.targets.tolist() == [[0, 7, 0, 8, 0, 6, 4, 0]]
    assert packed.weights.tolist() == [[0, 1, 0, 1, 0, 3, 0.5, 0]]
    assert packed.truths[0, 5].tolist() == [1, 0]
    assert (np.delete(packed.truths, 5, 1) == packing.IGNORED).all()
    assert packed.spared.tolist() == [[0], [3], [9]]
    assert packed.tokens.tolist() == [[5, 6, -1], [7, 8, 9]]
    assert packed.context.tolist() == [[0, 1, 2, 3], [0, 1, 4, -1]]
    assert packed.mask[0, 0].astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


def test_no_such_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GranAlignError, match="model: got 'gpt', expected one of vlm, llm, clip"):
        train.train("gpt", tmp_path)
    (tmp_path / "llm").mkdir()
    assert train.main(["llm", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("name another folder, or delete it\n")


# --- against transformers' models ---


@pytest.mark.needs_torch
def test_the_image_tower_equals_transformers() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from granalign_fast.miniatures import vlm

    model = vlm.build(0)
    frames = pool.draw(3, 1, grid=4).frames
    inputs = vlm.image_processor()(images=list(frames), return_tensors="pt")
    patches = torch.from_numpy(vlm.patches(frames))
    torch.testing.assert_close(patches.flatten(0, 1), inputs["pixel_values"])
    with torch.no_grad():
        expected = pooled(model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"]))
        embeddings = vlm.ImageTower(model)(patches).flatten(0, 1)
    torch.testing.assert_close(embeddings, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.needs_torch
def test_packed_questions_equal_lone_prompts() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from granalign_fast.miniatures import questions, train_vlm, vlm

    model, texts, rng = vlm.build(0).eval(), vlm.Prompts(), np.random.default_rng(0)
    scene_pool, kind, pairs = (
        pool.draw(2, 1, grid=4),
        train_vlm.STAGES[-1],
        scenes.pairs_of("train"),
    )
    segments_of_frames = [
        questions.segments(texts, scene, rng, pairs, kind) for scene in scene_pool.scenes
    ]
    rows = [packing.Row(texts.heads, segments) for segments in segments_of_frames]
    packed = packing.pack(rows, root=texts.root, first=texts.first)
    processor, language_model = vlm.image_processor(), model.model.language_model
    with torch.no_grad():
        features = vlm.ImageTower(model)(torch.from_numpy(vlm.patches(scene_pool.frames)))
        spoken = train_vlm.Speaker(model, texts)(features, packed)
        log_probabilities = model.lm_head(spoken.last).log_softmax(-1)
        language_model.config._attn_implementation = "sdpa"
        for number, (frame, row) in enumerate(zip(scene_pool.frames, rows, strict=True)):
            offset = sum(map(len, row.heads))
            image = processor(images=frame, return_tensors="pt")
            for segment in row.segments:
                prompt = [*row.heads[segment.head], *segment.prompt]
                seen = [texts.image_id] * vlm.TOKENS + [model.config.vision_end_token_id]
                ids = torch.tensor([[*texts.before, *seen, *prompt, *segment.answer]])
                image |= image_tokens(model, ids)
                lone = model(input_ids=ids, attention_mask=torch.ones_like(ids), **image).logits
                size = len(segment.answer)
                expected = lone[0, -size - 1 : -1].log_softmax(-1)
                last = offset + len(segment.prompt) - 1 if segment.prompt else len(row.heads[0]) - 1
                offset += len(segment.prompt)
                columns = [last, *range(offset, offset + size - 1)]
                torch.testing.assert_close(
                    log_probabilities[number, columns], expected, atol=1e-4, rtol=0
                )
                assert packed.targets[number, columns].tolist() == list(segment.answer)
                offset += size


@pytest.mark.needs_torch
def test_measured_answers_are_those_of_the_training() -> None:
    """The measurement places a frame as the training does, in every version of transformers."""
    torch = pytest.importorskip("torch")
    from granalign_fast.miniatures import measure, train_vlm, vlm

    model, texts = vlm.build(0).eval(), vlm.Prompts()
    drawn = pool.draw(2, 1, grid=4)
    answers = texts.tokenizer.convert_tokens_to_ids(["no", "yes"])
    prompt = prompts.recognition("a red circle")
    head = texts.suffix(prompt)
    # The training's own positions, and rows of one question each.
    (yes,) = texts.tokenizer.convert_tokens_to_ids(["yes"])
    rows = [packing.Row([head], [packing.Segment(0, [], [yes])]) for _ in drawn.scenes]
    packed = packing.pack(rows, root=texts.root, first=texts.first)
    with torch.no_grad():
        features = vlm.ImageTower(model)(torch.from_numpy(vlm.patches(drawn.frames)))
        spoken = train_vlm.Speaker(model, texts)(features, packed)
        logits = model.lm_head(spoken.last)[:, len(head) - 1, answers]
        model.model.language_model.config._attn_implementation = "sdpa"
    expected = logits.softmax(-1)[:, 1].numpy()
    shares = measure._yes(model, texts.tokenizer, drawn, [prompt] * len(rows))
    np.testing.assert_allclose(shares, expected, atol=1e-5, rtol=0)


@pytest.mark.needs_torch
def test_captions_spare_the_words_of_pairs_never_drawn() -> None:
    """A caption spares the first word that would differ for a scene with such a pair."""
    pytest.importorskip("transformers")
    from granalign_fast.miniatures import questions, vlm

    texts, rng = vlm.Prompts(), np.random.default_rng(0)
    thing = scenes.compose(rng, [("circle", "red", "tiny", 1)], "gray", "plain")
    spared_words = {"shape": set[str](), "colour": set[str]()}
    for shape, colour in scenes.strangers(("circle", "red")):
        assert (shape, colour) in scenes.HELD_OUT["test"] | scenes.HELD_OUT["validation"]
        spared_words["shape" if colour == "red" else "colour"].add(
            shape if colour == "red" else colour
        )
    assert spared_words["shape"] and spared_words["colour"]
    for focus in (None, language.Focus(frozenset({("circle", "red")}))):
        segment = questions.caption(texts, thing, [], focus)
        words = texts.tokenizer.convert_ids_to_tokens(segment.answer)
        others: dict[str, set[str]] = {}
        for position, token in segment.spared:
            other = texts.tokenizer.convert_ids_to_tokens(token)
            others.setdefault(words[position], set()).add(other)
        assert others.pop("circle") == spared_words["shape"]
        # With the colour first, "an orange circle" already differs at its article.
        assert set.union(*others.values()) >= spared_words["colour"] - {"orange"}
        assert set(others) <= {"a", "red"}
    # "a" begins most things, and must become unlikely where the caption is "an orange circle".
    orange = scenes.compose(rng, [("circle", "orange", "tiny", 1)], "gray", "plain")
    spared = questions.caption(texts, orange, [], None).spared
    assert spared and texts.article not in {token for _, token in spared}


@pytest.mark.needs_torch
def test_labels_spare_pairs_never_drawn() -> None:
    torch = pytest.importorskip("torch")
    (shape, colour), *_ = sorted(scenes.HELD_OUT["test"])
    table = {"shape": scenes.SHAPES.index(shape) + 1, "colour": list(scenes.COLOURS).index(colour)}
    labels = torch.zeros(1, len(pool.LABELS), dtype=torch.int64)
    labels[0, 1] = table["colour"] + 1
    logits = torch.zeros(1, sum(pool.LABELS), requires_grad=True)
    for spared in (False, True):
        loss, _ = pool.label_loss(logits, labels, spare_strangers=spared)
        (grad,) = torch.autograd.grad(loss, logits)
        assert (grad[0, table["shape"]] == 0) == spared
        assert grad[0, 0] < 0


@pytest.mark.needs_torch
def test_packed_rewrites_equal_lone_prompts() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from granalign_fast.miniatures import train_llm

    model, texts, rng = train_llm.build(0).eval(), train_llm.Prompts(), np.random.default_rng(0)
    typed = [train_llm.sample(rng) for _ in range(2)]
    rows = [
        packing.Row([head], [texts.segment(task, query) for query in typed])
        for task, head in enumerate(texts.heads)
    ]
    packed = packing.pack(rows, root=len(texts.root), first=len(texts.root))
    packing.TreeAttention.install(model.config)
    with torch.no_grad():
        log_probabilities = train_llm.logits(model, texts.root, packed).log_softmax(-1)
        model.config._attn_implementation = "sdpa"
        for task, row in enumerate(rows):
            offset = len(row.heads[0])
            for query, segment in zip(typed, row.segments, strict=True):
                size = len(segment.answer)
                ids = [*texts.whole(train_llm.TASKS[task], query.text), *segment.answer]
                expected = model(torch.tensor([ids])).logits[0, -size - 1 : -1].log_softmax(-1)
                offset += len(segment.prompt)
                mine = log_probabilities[task, offset - 1 : offset + size - 1]
                torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)
                offset += size


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", ["vlm", "llm"])
def test_the_product_reads_the_tokenizers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoTokenizer

    from granalign_fast.models.chat import ChatTokenizer

    tokenizer = {"vlm": wordlevel.vlm_tokenizer, "llm": wordlevel.llm_tokenizer}[name]()
    tokenizer.save_pretrained(tmp_path)
    loaded, ours = AutoTokenizer.from_pretrained(tmp_path), ChatTokenizer(tmp_path)
    for text in (prompts.user_message(prompts.ENTITIES, "a crimson disc"), "Is it Red?\nYes."):
        messages = [
            {"role": "system", "content": prompts.SYSTEM},
            {"role": "user", "content": text},
        ]
        expected = loaded.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        assert ours.chat(messages) == expected
    answer = "entities : red circle\nactions :"
    assert ours.decode(ours.encode(answer)).split() == answer.split()
    assert "\n" in ours.decode(ours.encode(answer))


@pytest.mark.needs_torch
def test_training_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from granalign_fast.miniatures import training

    def trained(folder: str, stop: int | None) -> Any:
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)

        def loss_of(step: int) -> tuple[Any, dict[str, float]]:
            if step == stop:
                raise KeyboardInterrupt
            inputs = torch.from_numpy(np.random.default_rng(step).normal(size=(4, 3))).float()
            return model(inputs).pow(2).mean(), {}

        training.train(
            "test",
            {"model": model},
            list(model.named_parameters()),
            loss_of,
            steps=8,
            rate=0.1,
            checkpoint=tmp_path / folder,
            checkpoint_seconds=0.0,
        )
        return model.weight

    whole = trained("whole", None)
    with pytest.raises(KeyboardInterrupt):
        trained("torn", 5)
    torch.testing.assert_close(trained("torn", None), whole, atol=0, rtol=0)
