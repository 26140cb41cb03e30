"""Train the miniature of motion: a Qwen2.5-VL that sees clips of one to six frames.

First the image tower learns from labels what a pair of frames shows, then the whole model learns
captions and questions. Everything is drawn anew in each step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.export.specs import CLIP_FRAMES
from granalign_fast.language import prompts
from granalign_fast.models.image_layout import ImageLayout, VisualRun

from . import batches as packing
from . import motion, motion_clips, training, vlm, wordlevel
from .motion_clips import FORMS, LABEL_WORDS, LABELS, Clips, Form
from .train_vlm import Speaker, speech_loss

WIDTH, SECTIONS = 96, (4, 4, 4)
THREADS = 1
POSITIONS_PER_SECOND = 4.0
"""Positions in time that a second has: the setting ``tokens_per_second`` of Qwen2.5-VL."""

# The tower's rate has not fallen yet when the language model joins.
VISION_STEPS, VISION_STOP, VISION_GRIDS, VISION_RATE = 4000, 2400, 48, 1.5e-3
LANGUAGE_STEPS, LANGUAGE_ROWS, LANGUAGE_RATE = 3000, 10, 1.5e-3
SHARES = (1, 1, 2, 2)  # how often a step has clips of 1, 2, 4 and 6 frames
LOOK_WEIGHT, OUTCOME_WEIGHT = 0.3, 0.5
OUTCOME_LAYER = 2
"""Decoder layer after which the tokens of a clip's last frames tell what the clip shows."""
_SHARP = 6.0  # factor of the logits: an image token that is the sum of its words is then certain


def tokenizer() -> Any:
    """Return a tokenizer that knows the prompts about frames and clips, and the captions."""
    texts = ["system user assistant yes no \n", prompts.VISION_SYSTEM, prompts.CLIP_SYSTEM]
    for frames in (1, 2):
        texts += [prompts.agnostic_caption(frames), prompts.recognition("red", frames)]
        texts.append(prompts.aware_caption(["red", "blue"], frames))
    texts += [*motion.SHAPES, *motion.COLOUR_NAMES, *motion.PHRASES.values(), "a an and"]
    return wordlevel.vlm_tokenizer(wordlevel.words_of(texts), wordlevel.VIDEO_TEMPLATE)


def build(seed: int) -> Any:
    """Build an untrained ``Qwen2_5_VLForConditionalGeneration`` of 1.1 million parameters."""
    return vlm.build(seed, tokenizer(), width=WIDTH, sections=SECTIONS, threads=THREADS)


def layout(form: Form, words: Any) -> ImageLayout | None:
    """Return how a prompt holds a clip: one video of pairs of frames; None for a single frame."""
    if form.frames == 1:
        return None
    video = words.convert_tokens_to_ids("<|video_pad|>")
    run = VisualRun(video, (form.grids, vlm.GRID, vlm.GRID))
    return ImageLayout(
        content="video",
        placeholder=(video,),
        pieces=(run,),
        frames=form.frames,
        span=2,
        positions_per_second=POSITIONS_PER_SECOND,
    ).timed(form.gap, words.encode)


class Looker:
    """Runs the image tower on pairs of frames, and computes the loss of their labels.

    The logit of a label with a word is the product of the image token and the word's embedding, so
    an image token becomes the sum of the words for what it shows.

    Args:
        model: transformers' model.
        labels: a linear map from image tokens to labels, used for labels without a word.
    """

    def __init__(self, model: Any, labels: Any) -> None:
        import torch

        self.tower, self.labels = vlm.ImageTower(model), labels
        self.words = model.model.language_model.embed_tokens
        vocabulary = tokenizer().get_vocab()
        words = [word for group in LABEL_WORDS for word in group]
        self.ids = torch.tensor([vocabulary[word] if word else 0 for word in words])
        self.spoken = torch.tensor([word is not None for word in words])

    def __call__(self, clips: Clips) -> tuple[Any, Any, dict[str, float]]:
        """Return features (clips, image tokens, width), the loss, and each label's."""
        import torch
        from torch.nn import functional

        count, grids = clips.pairs.shape[:2]
        pairs = clips.pairs.reshape(-1, *clips.pairs.shape[2:])
        features = self.tower(torch.from_numpy(vlm.pair_patches(pairs)))
        words = self.words.weight[self.ids]
        weights = _SHARP * torch.where(self.spoken[:, None], words, self.labels.weight)
        logits = functional.linear(features, weights, self.labels.bias)
        loss, numbers = label_loss(logits.view(count, grids, vlm.TOKENS, -1), clips.labels)
        return features.view(count, grids * vlm.TOKENS, -1), loss, numbers


def label_loss(logits: Any, labels: Any) -> tuple[Any, dict[str, float]]:
    """Return the sum of the labels' cross entropies, and each one.

    Args:
        logits: (..., sum(LABELS)).
        labels: int64 array (..., 3).
    """
    import torch
    from torch.nn import functional

    targets = torch.from_numpy(labels)
    losses = []
    for number, part in enumerate(logits.split(LABELS, -1)):
        target = targets[..., number].flatten()
        each = functional.cross_entropy(part.flatten(0, -2), target, reduction="none")
        # Few cells hold an object: they weigh as much as all others.
        there = (target > 0).float()
        empty = (target == 0).float()
        losses.append(
            (each * there).sum() / there.sum().clamp(min=1)
            + (each * empty).sum() / empty.sum().clamp(min=1)
        )
    names = ("shape", "colour", "motion")
    return sum(losses), {name: loss.item() for name, loss in zip(names, losses, strict=True)}


def draw_form(rng: np.random.Generator) -> Form:
    """Draw the form of a step's clips."""
    shares = np.array([SHARES[(1, *CLIP_FRAMES).index(form.frames)] for form in FORMS])
    return FORMS[rng.choice(len(FORMS), p=shares / shares.sum())]


def run(out: Path, seed: int, scale: float = 1.0) -> None:
    """Train and save.

    Args:
        out: folder of the model, created when training is complete.
        seed: seed of everything random.
        scale: factor of the numbers of steps.
    """
    import torch

    model, words = build(seed), tokenizer()
    print(f"motion: {model.num_parameters()} parameters", flush=True)
    torch.manual_seed(seed + 1)
    labels, outcomes = (torch.nn.Linear(WIDTH, sum(LABELS)) for _ in "ab")
    alone, so_far = torch.nn.Linear(WIDTH, 1), torch.nn.Linear(WIDTH, 1)
    looker, visual = Looker(model, labels), model.model.visual
    texts = {form: vlm.Prompts(words, layout(form, words)) for form in FORMS}
    speakers = {form: Speaker(model, texts[form], OUTCOME_LAYER) for form in FORMS}

    def look(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 1, step))
        form = draw_form(rng)
        return looker(motion_clips.draw(rng, VISION_GRIDS // form.grids, form))[1:]

    training.train(
        "vision",
        {"visual": visual, "heads": labels},
        [*visual.named_parameters(), *labels.named_parameters()],
        look,
        steps=round(VISION_STEPS * scale),
        stop=round(VISION_STOP * scale),
        rate=VISION_RATE,
        checkpoint=out.with_suffix(".vision"),
    )

    def speak(step: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng((seed, 2, step))
        form = draw_form(rng)
        clips = motion_clips.draw(rng, LANGUAGE_ROWS, form)
        features, seen, numbers = looker(clips)
        prompts_of_form = texts[form]
        rows = [
            packing.Row(prompts_of_form.heads, motion_clips.segments(prompts_of_form, shot, rng))
            for shot in clips.shots
        ]
        packed = packing.pack(rows, root=prompts_of_form.root, first=prompts_of_form.first)
        spoken = speakers[form](features, packed)
        answers, of_speech = speech_loss(model.lm_head, (alone, so_far), spoken, packed)
        loss = answers + LOOK_WEIGHT * seen
        of_speech["motion"] = numbers["motion"]
        if form.frames > 1:
            outcome, of_outcome = label_loss(
                outcomes(spoken.image[:, -vlm.TOKENS :]), clips.outcome
            )
            loss = loss + OUTCOME_WEIGHT * outcome
            of_speech = {name: value for name, value in of_speech.items() if name != "alone"}
            of_speech["outcome"] = of_outcome["motion"]
            return loss, of_speech
        return loss, {f"{name} of one frame": of_speech[name] for name in ("answer", "words")}

    parts = {
        "model": model,
        "alone": alone,
        "so_far": so_far,
        "labels": labels,
        "outcomes": outcomes,
    }
    training.train(
        "language",
        parts,
        [
            (f"{part}.{name}", weight)
            for part, module in parts.items()
            for name, weight in module.named_parameters()
        ],
        speak,
        steps=round(LANGUAGE_STEPS * scale),
        rate=LANGUAGE_RATE,
        decay=0.6,
        slower={"model.model.visual.": 0.3},
        checkpoint=out.with_suffix(".language"),
    )
    model.model.language_model.config._attn_implementation = "sdpa"
    training.save(out, model, words, vlm.image_processor())
