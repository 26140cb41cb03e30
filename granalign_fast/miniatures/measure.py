"""Measure trained miniatures on scenes with pairs that training neither drew nor named.

``python -m granalign_fast.miniatures.measure DIR`` prints one JSON object for the folders that
``granalign_fast.miniatures.train`` wrote under DIR. The models run in transformers.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.checks.transformers_calls import (
    image_tokens,
    load_image_processor,
    pooled,
)
from granalign_fast.language import prompts

from . import language, meaning, queries, scenes, train_llm, vlm
from .pool import Pool, draw
from .scenes import Split

_SEED = 1_000_003
"""Seed of the scenes: one that training does not use."""
_BATCH = 32


def auroc(scores: npt.NDArray[np.floating], truths: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a true item scores above a false one; ties count half."""
    above = scores[truths][:, None] - scores[~truths][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def measure_vlm(folder: Path, count: int = 200, split: Split = "test") -> dict[str, float]:
    """Measure the shares of exact captions, and how well "yes" separates true and false queries.

    Args:
        folder: folder of a trained model.
        count: number of scenes.
        split: split of the scenes.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pool, pairs = draw(count, _SEED, split=split, grid=vlm.GRID), scenes.pairs_of(split)
    rng = np.random.default_rng(_SEED)
    captions = [language.agnostic_caption(scene) for scene in pool.scenes]
    answers = _answers(model, tokenizer, pool, [prompts.AGNOSTIC_CAPTION] * count)
    result = {"agnostic": _equal(answers, captions)}
    prompt_texts, expected = [], []
    for scene in pool.scenes:
        spec = meaning.sample_spec(rng, scene)
        if rng.random() < 0.4:
            spec = meaning.falsified(rng, spec, scene, pairs) or spec
        focus = (*language.entities(spec), *language.actions(bool(rng.random() < 0.4)))
        prompt_texts.append(prompts.aware_caption(focus))
        expected.append(language.aware_caption(scene, language.Focus.of(spec)))
    result["aware"] = _equal(_answers(model, tokenizer, pool, prompt_texts), expected)
    # Each scene gets two questions: a true one, and one with a demand changed.
    questions, truths, kinds = [], [], []
    for scene in pool.scenes:
        spec = meaning.sample_spec(rng, scene)
        candidates = meaning.demands(spec)
        kind = candidates[rng.integers(len(candidates))]
        wrong = meaning.falsified(rng, spec, scene, pairs, (kind,))
        for texts in (spec, wrong or spec):
            text = queries.sample_query(rng, texts, pairs).text
            questions.append(prompts.recognition(text))
            truths.append(texts.holds(scene))
            kinds.append("true" if texts.holds(scene) else kind)
    twice = Pool([s for s in pool.scenes for _ in "ab"], np.repeat(pool.frames, 2, 0), pool.labels)
    yes = _yes(model, tokenizer, twice, questions)
    true = np.array(truths)
    result["recognition AUROC"] = auroc(yes, true)
    result["recognition accuracy"] = float(((yes > 0.5) == true).mean())
    by_kind = defaultdict(list)
    for p, kind in zip(yes, kinds, strict=True):
        by_kind[kind].append((p > 0.5) == (kind == "true"))
    result |= {f"recognition {kind}": float(np.mean(by_kind[kind])) for kind in sorted(by_kind)}
    return result


def _groups(texts: Sequence[list[int]]) -> list[list[int]]:
    """Group the numbers of equally long texts into batches, which need no padding."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for number, ids in enumerate(texts):
        lengths[len(ids)].append(number)
    return [some[i : i + _BATCH] for some in lengths.values() for i in range(0, len(some), _BATCH)]


def _prompts(tokenizer: Any, prompt_texts: Sequence[str]) -> list[list[int]]:
    """Return the prompts' token ids, with as many image tokens as a frame has."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    token_ids = []
    for prompt in prompt_texts:
        ids = tokenizer.apply_chat_template(
            prompts.about_frame(prompt), add_generation_prompt=True, return_dict=False
        )
        position = ids.index(image)
        token_ids.append([*ids[:position], *[image] * vlm.TOKENS, *ids[position + 1 :]])
    return token_ids


def _batches(model: Any, tokenizer: Any, pool: Pool, prompt_texts: Sequence[str]) -> Any:
    """Yield batches: numbers of prompts, and the inputs of transformers' model."""
    import torch

    ids = _prompts(tokenizer, prompt_texts)
    processor = vlm.image_processor()
    for numbers in _groups(ids):
        pixels = processor(images=[pool.frames[i] for i in numbers], return_tensors="pt")
        text = torch.tensor([ids[i] for i in numbers])
        yield (
            numbers,
            {"input_ids": text, "attention_mask": torch.ones_like(text)}
            | dict(pixels)
            | image_tokens(model, text),
        )


def _answers(model: Any, tokenizer: Any, pool: Pool, prompt_texts: Sequence[str]) -> list[str]:
    answers = [""] * len(prompt_texts)
    for numbers, inputs in _batches(model, tokenizer, pool, prompt_texts):
        generated = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        texts = tokenizer.batch_decode(
            generated[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for number, text in zip(numbers, texts, strict=True):
            answers[number] = text
    return answers


def _yes(
    model: Any, tokenizer: Any, pool: Pool, prompt_texts: Sequence[str]
) -> npt.NDArray[np.float64]:
    import torch

    shares = np.empty(len(prompt_texts))
    answers = tokenizer.convert_tokens_to_ids(["no", "yes"])
    for numbers, inputs in _batches(model, tokenizer, pool, prompt_texts):
        with torch.no_grad():
            logits = model(**inputs, logits_to_keep=1).logits[:, -1, answers]
        shares[numbers] = logits.softmax(-1)[:, 1].double().numpy()
    return shares


def _equal(answers: Sequence[str], expected: Sequence[str]) -> float:
    pairs = zip(answers, expected, strict=True)
    return sum(one.split() == other.split() for one, other in pairs) / len(expected)


def measure_llm(folder: Path, count: int = 100, split: Split = "test") -> dict[str, float]:
    """Measure the share of exact answers to each of the seven tasks."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(_SEED)
    typed = [train_llm.sample(rng, split) for _ in range(count)]
    texts, result = train_llm.Prompts(), {}
    for number, task in enumerate(train_llm.TASKS):
        ids = [texts.whole(task, query.text) for query in typed]
        answers = [""] * count
        for numbers in _groups(ids):
            inputs = torch.tensor([ids[i] for i in numbers])
            generated = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=64, do_sample=False
            )
            decoded = tokenizer.batch_decode(
                generated[:, inputs.shape[1] :], skip_special_tokens=True
            )
            for i, text in zip(numbers, decoded, strict=True):
                answers[i] = text
        name = ("simplified", "detailed", "entities")[number // 3]
        key = name if number == 6 else f"{name} {number % 3 + 1}"
        result[key] = _equal(answers, [train_llm.targets(query)[number] for query in typed])
    return result


def measure_clip(folder: Path, count: int = 200, split: Split = "test") -> dict[str, float]:
    """Measure how often a query's frame is the nearest, and nearer than to a nearly true query."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    from .train_clip import texts_of

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = load_image_processor(folder)
    pool, pairs = draw(count, _SEED, split=split, grid=vlm.GRID), scenes.pairs_of(split)
    rng = np.random.default_rng(_SEED)
    specs, _, right, wrong = zip(*(texts_of(rng, s, pairs) for s in pool.scenes), strict=True)
    with torch.no_grad():
        pixels = processor(images=list(pool.frames), return_tensors="pt")["pixel_values"]
        frames = pooled(model.get_image_features(pixels))
        encoded = tokenizer([*right, *wrong], padding=True, truncation=True, return_tensors="pt")
        texts = pooled(model.get_text_features(encoded["input_ids"], encoded["attention_mask"]))
    frames, texts = (x / x.norm(dim=-1, keepdim=True) for x in (frames, texts))
    cosines = (texts @ frames.T).numpy()
    holds = np.array([[spec.holds(scene) for scene in pool.scenes] for spec in specs])
    best = cosines[:count].argmax(1)
    right_scores, near = np.diagonal(cosines[:count]), np.diagonal(cosines[count:])
    return {
        f"first of {count}": float(holds[np.arange(count), best].mean()),
        "AUROC": float(np.mean([auroc(c, h) for c, h in zip(cosines, holds, strict=False)])),
        "nearer than nearly true": float((right_scores > near).mean()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, measure, and print JSON."""
    parser = argparse.ArgumentParser(description="Measure trained miniature models.")
    parser.add_argument("folder", type=Path, help="output folder of miniatures.train")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    inputs = parser.parse_args(arguments)
    measures = {"vlm": measure_vlm, "llm": measure_llm, "clip": measure_clip}
    results = {
        name: measure(inputs.folder / name, split=inputs.split)
        for name, measure in measures.items()
        if (inputs.folder / name).is_dir()
    }
    print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
