"""How well trained miniatures do on scenes of pairs that training neither drew nor named.

``python -m granalign_fast.miniatures.measure DIR`` prints one JSON object for the folders that
``granalign_fast.miniatures.train`` wrote under DIR. Models run as transformers runs them.
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

from granalign_fast.language import prompts

from . import language, meaning, queries, scenes, train_llm, vlm
from .pool import Pool, draw
from .scenes import Split

_SEED = 1_000_003
_BATCH = 32


def auroc(scores: npt.NDArray[np.floating], truths: npt.NDArray[np.bool_]) -> float:
    """The probability that a true one scores above a false one; ties count half."""
    above = scores[truths][:, None] - scores[~truths][None]
    return float((above > 0).mean() + (above == 0).mean() / 2)


def measure_vlm(folder: Path, count: int = 200, split: Split = "test") -> dict[str, float]:
    """Shares of exact captions, and how well yes tells true queries from false ones.

    Args:
        folder: a trained model.
        count: scenes.
        split: of them.
    """
    import torch
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pool, pairs = draw(count, _SEED, split=split, grid=vlm.GRID), scenes.pairs_of(split)
    rng = np.random.default_rng(_SEED)
    captions = [language.agnostic_caption(scene) for scene in pool.scenes]
    told = _answers(model, tokenizer, pool, [prompts.AGNOSTIC_CAPTION] * count)
    result = {"agnostic": _equal(told, captions)}
    asked, wanted = [], []
    for scene in pool.scenes:
        spec = meaning.sample_spec(rng, scene)
        if rng.random() < 0.4:
            spec = meaning.falsified(rng, spec, scene, pairs) or spec
        focus = (*language.entities(spec), *language.actions(bool(rng.random() < 0.4)))
        asked.append(prompts.aware_caption(focus))
        wanted.append(language.aware_caption(scene, language.Focus.of(spec)))
    result["aware"] = _equal(_answers(model, tokenizer, pool, asked), wanted)
    # Every scene is asked for something true, and for something with one demand changed.
    questions, truths, kinds = [], [], []
    for scene in pool.scenes:
        spec = meaning.sample_spec(rng, scene)
        able = meaning.demands(spec)
        kind = able[rng.integers(len(able))]
        wrong = meaning.falsified(rng, spec, scene, pairs, (kind,))
        for said in (spec, wrong or spec):
            text = queries.sample_query(rng, said, pairs).text
            questions.append(prompts.recognition(text))
            truths.append(said.holds(scene))
            kinds.append("true" if said.holds(scene) else kind)
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
    """Numbers of texts of one length, a batch at a time: nothing is padded."""
    lengths: dict[int, list[int]] = defaultdict(list)
    for number, ids in enumerate(texts):
        lengths[len(ids)].append(number)
    return [some[i : i + _BATCH] for some in lengths.values() for i in range(0, len(some), _BATCH)]


def _prompts(tokenizer: Any, asked: Sequence[str]) -> list[list[int]]:
    """Token ids with the image's token as often as a frame needs it."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    found = []
    for prompt in asked:
        ids = tokenizer.apply_chat_template(vlm.messages(prompt), add_generation_prompt=True)
        at = ids.index(image)
        found.append([*ids[:at], *[image] * vlm.TOKENS, *ids[at + 1 :]])
    return found


def _batches(tokenizer: Any, pool: Pool, asked: Sequence[str]) -> Any:
    """Which ones, and what the stock model takes."""
    import torch

    ids = _prompts(tokenizer, asked)
    processor = vlm.image_processor()
    for numbers in _groups(ids):
        pixels = processor(images=[pool.frames[i] for i in numbers], return_tensors="pt")
        text = torch.tensor([ids[i] for i in numbers])
        yield numbers, {"input_ids": text, "attention_mask": torch.ones_like(text), **pixels}


def _answers(model: Any, tokenizer: Any, pool: Pool, asked: Sequence[str]) -> list[str]:
    found = [""] * len(asked)
    for numbers, inputs in _batches(tokenizer, pool, asked):
        made = model.generate(**inputs, max_new_tokens=48, do_sample=False)
        texts = tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for number, text in zip(numbers, texts, strict=True):
            found[number] = text
    return found


def _yes(model: Any, tokenizer: Any, pool: Pool, asked: Sequence[str]) -> npt.NDArray[np.float64]:
    import torch

    found = np.empty(len(asked))
    answers = tokenizer.convert_tokens_to_ids(["no", "yes"])
    for numbers, inputs in _batches(tokenizer, pool, asked):
        with torch.no_grad():
            logits = model(**inputs, logits_to_keep=1).logits[:, -1, answers]
        found[numbers] = logits.softmax(-1)[:, 1].double().numpy()
    return found


def _equal(found: Sequence[str], wanted: Sequence[str]) -> float:
    pairs = zip(found, wanted, strict=True)
    return sum(one.split() == other.split() for one, other in pairs) / len(wanted)


def measure_llm(folder: Path, count: int = 100, split: Split = "test") -> dict[str, float]:
    """The share of exact answers to each of the seven tasks."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = np.random.default_rng(_SEED)
    typed = [train_llm.sample(rng, split) for _ in range(count)]
    texts, result = train_llm.Prompts(), {}
    for number, task in enumerate(train_llm.TASKS):
        ids = [texts.whole(task, query.text) for query in typed]
        found = [""] * count
        for numbers in _groups(ids):
            given = torch.tensor([ids[i] for i in numbers])
            made = model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=64, do_sample=False
            )
            said = tokenizer.batch_decode(made[:, given.shape[1] :], skip_special_tokens=True)
            for i, text in zip(numbers, said, strict=True):
                found[i] = text
        name = ("simplified", "detailed", "entities")[number // 3]
        key = name if number == 6 else f"{name} {number % 3 + 1}"
        result[key] = _equal(found, [train_llm.targets(query)[number] for query in typed])
    return result


def measure_clip(folder: Path, count: int = 200, split: Split = "test") -> dict[str, float]:
    """Whether a query's frame is the nearest of all, and nearer than to a nearly true query."""
    import torch
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    from .train_clip import texts_of

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    processor = CLIPImageProcessor.from_pretrained(folder)
    pool, pairs = draw(count, _SEED, split=split, grid=vlm.GRID), scenes.pairs_of(split)
    rng = np.random.default_rng(_SEED)
    specs, _, right, wrong = zip(*(texts_of(rng, s, pairs) for s in pool.scenes), strict=True)
    with torch.no_grad():
        pixels = processor(images=list(pool.frames), return_tensors="pt")["pixel_values"]
        frames = model.get_image_features(pixels)
        encoded = tokenizer([*right, *wrong], padding=True, truncation=True, return_tensors="pt")
        said = model.get_text_features(encoded["input_ids"], encoded["attention_mask"])
    frames, said = (x / x.norm(dim=-1, keepdim=True) for x in (frames, said))
    cosines = (said @ frames.T).numpy()
    holds = np.array([[spec.holds(scene) for scene in pool.scenes] for spec in specs])
    best = cosines[:count].argmax(1)
    own, near = np.diagonal(cosines[:count]), np.diagonal(cosines[count:])
    return {
        f"first of {count}": float(holds[np.arange(count), best].mean()),
        "AUROC": float(np.mean([auroc(c, h) for c, h in zip(cosines, holds, strict=False)])),
        "nearer than nearly true": float((own > near).mean()),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure trained miniature models.")
    parser.add_argument("folder", type=Path, help="what train wrote to")
    parser.add_argument("--split", default="test", choices=["train", "validation", "test"])
    given = parser.parse_args(arguments)
    measures = {"vlm": measure_vlm, "llm": measure_llm, "clip": measure_clip}
    found = {
        name: measure(given.folder / name, split=given.split)
        for name, measure in measures.items()
        if (given.folder / name).is_dir()
    }
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
