"""Suite ``shapes``: models in published shapes with random weights, in fp16 on a GPU.

It measures the image tower of CLIP ViT-B/32 and its peer in torch; decode steps and the extension
of a kept prefix by Llama 3 8B and Qwen2.5-VL 7B; captions of new frames and their peer in
transformers.

The large decoders are cut to two small depths, so that writing and loading them takes seconds. All
layers are equal, so the difference of the two times is the time of the layers between them. From it
the suite extrapolates a decode step of the whole model, and the parts of a query: rewrites,
captions of key frames, recognition. On a CPU, small shapes take the place of the published ones.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.bench.harness import query_parts, random_models
from granalign_fast.bench.harness.judges import judge_answers
from granalign_fast.bench.harness.limits import Work
from granalign_fast.bench.harness.random_tower import TOWERS, prepared, tower_weights, write_tower
from granalign_fast.bench.harness.records import OURS
from granalign_fast.bench.harness.runner import Bench, Runner
from granalign_fast.bench.harness.timing import HostClock, difference, require
from granalign_fast.bench.peers import runtimes as peers
from granalign_fast.bench.peers.clip_answers import TransformersClips
from granalign_fast.errors import one_line
from granalign_fast.language import prompts
from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.models.exported_graph import open_session
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.manifest import VLM
from granalign_fast.models.prefix_cache import PrefixCache
from granalign_fast.models.vision_language_model import VisionLanguageModel
from granalign_fast.types import FrameSet

from .generation import Matrices, counted, decoder_work, token_judge

_IMAGES = {"cpu": 8, "cuda": 64}
"""Images of a batch."""
_SHORT, _LONG = 2, 34
"""Tokens of a short and a long answer: the difference of their times is that of the steps."""
_PROMPT = 64
"""Tokens of a prompt."""
_SHARED, _OWN, _BEHIND = 300, 16, 40
"""Tokens that prompts about frames share, further tokens of each, and number of prompts."""
_JUDGED_TOKENS = 64
"""Tokens of the vocabulary whose logits are compared: all of them would be a large copy."""
_FRAMES, _STEPS = 8, 16
"""Frames to caption, and tokens of a caption."""
_OFF = {"fp32": 2e-3, "fp16": 5e-2}
"""Largest difference between logits after a kept prefix and after the whole prompt, as a share of
the largest logit."""


@dataclass(frozen=True, slots=True)
class _Case:
    """A decoder that is measured at two depths.

    Attributes:
        name: name in `random_models.SHAPES`.
        rows: rows of a decode step.
        depths: the two numbers of layers that it is cut to.
    """

    name: str
    rows: int
    depths: tuple[int, int]


# Seven prompts make one query's rewrites; forty frames are the key frames of a long video.
_LARGE = (_Case("llama3-8b", 7, (1, 4)), _Case("qwen2.5-vl-7b", 40, (1, 4)))
_SMALL = (_Case("llama-mini", 7, (1, 3)), _Case("qwen2.5-vl-mini", 8, (1, 3)))


def run(bench: Bench) -> None:
    """Measure the tower and each decoder, or those of them that ``--random`` names.

    After a failure the others are still measured.

    Raises:
        WrongAnswerError: a part failed.
    """
    failures = []
    large = bench.on_gpu and bench.settings.size >= 1
    tower = "clip-vit-b32" if large else "clip-mini"
    parts = {tower: partial(_tower, bench, tower)}
    parts |= {case.name: partial(_decoder, bench, case) for case in (_LARGE if large else _SMALL)}
    chosen = bench.settings.random
    if chosen and not parts.keys() & set(chosen):
        bench.note(f"none of {', '.join(chosen)} is measured here; {', '.join(parts)} are")
    for part in [part for name, part in parts.items() if not chosen or name in chosen]:
        try:
            part()
        except Exception as error:  # a GPU's driver or a library may raise anything
            failures.append(f"{type(error).__name__}: {one_line(error)}")
    require(not failures, "; ".join(failures))


def _precision(bench: Bench) -> str:
    return "fp16" if bench.on_gpu else "fp32"


def _torch_device(bench: Bench) -> str:
    return "cuda" if bench.on_gpu else "cpu"


def _tower(bench: Bench, name: str) -> None:
    shape, half = TOWERS[name], bench.on_gpu
    weights = tower_weights(shape)
    path = write_tower(shape, weights, bench.folder / "shapes" / name, half=half)
    session = open_session(path, device=bench.settings.device)
    where = _torch_device(bench)
    count = bench.settings.scaled(_IMAGES[where], 2)
    kind = _precision(bench)
    weights_read, values = shape.matrices * (2 if half else 4), count * 3 * shape.side**2
    operations = count * shape.operations
    ours = Work(weights_read + values, operations, kind)
    others = Work(weights_read + values * (2.0 if half else 4.0), operations, kind)

    def draw(rng: np.random.Generator) -> Any:
        """Draw frames for ours, and their normalised pixels for the others, on the device."""
        frames = rng.integers(0, 256, (count, shape.side, shape.side, 3), np.uint8)
        pixels = prepared(frames).astype(np.float16 if half else np.float32)
        return bench.to_device(frames), bench.to_device(pixels)

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        for runner, rows in outputs.items():
            cosine = float((rows * outputs[OURS]).sum(axis=1).min())
            require(cosine > 0.999, f"{runner}: cosine {cosine:.5f} to ours")

    theirs = peers.image_towers(shape, weights, bench.note, device=where, half=half)
    bench.race(
        "embed prepared images",
        [
            Runner(
                run=lambda inputs: bench.to_host(session(frames=inputs[0])["embeddings"]),
                work=ours,
            ),
            *(
                Runner(name=n, run=partial(_on_pixels, tower), work=others, peer=True)
                for n, tower in theirs.items()
            ),
        ],
        draw,
        judge,
        unit="image",
        items=count,
        clock=HostClock(),
        parameters={"tower": name, "images": count, "precision": kind},
    )
    if theirs:
        bench.note(
            f"{name}: ours takes the frames' bytes, and the measured time includes cutting them to "
            f"patches and normalising them; the others get normalised pixels in their precision"
        )
    if bench.on_gpu:
        why = session.graphs_refused
        bench.note(f"{name}: no CUDA graph: {why}" if why else f"{name}: as a CUDA graph")


def _on_pixels(run: Callable[[Any], Any], inputs: tuple[Any, Any]) -> Any:
    """Run a tower on the pixels of ``(frames, pixels)``."""
    return run(inputs[1])


def _decoder(bench: Bench, case: _Case) -> None:
    """Measure one shape at both depths; prefixes and captions only at the greater one."""
    steps: dict[int, float] = {}
    parts: dict[str, dict[int, float]] = {}
    for depth in case.depths:
        cut = f"{case.name}@{depth}"
        folder = bench.folder / "shapes" / cut
        try:
            out = random_models.write_export(cut, folder, precision=_precision(bench))
            make = VisionLanguageModel if out.name == VLM else CausalLM
            model = make(out, device=bench.settings.device)
            step = _step(bench, model, case, depth, Matrices.read(out))
            if bench.on_gpu:
                why = "" if model.captured_graphs else f"no CUDA graph: {model.graphs_refused}"
                bench.note(f"{cut}: {why or 'a step is a CUDA graph'}")
            if step is not None:
                steps[depth] = step
            if isinstance(model, VisionLanguageModel):
                seconds_of = query_parts.vision_seconds(bench, model, cut)
            else:
                seconds_of = query_parts.rewriting_seconds(bench, model, cut)
            for task, seconds in seconds_of.items():
                parts.setdefault(task, {})[depth] = seconds
            if depth == case.depths[-1]:
                _prefix(bench, model, cut)
                if isinstance(model, VisionLanguageModel):
                    _captions(bench, model, folder / "sources" / cut, cut)
            del model
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if len(steps) == len(case.depths):
        _extrapolate(bench, case, steps)
    layers = random_models.shape_of(case.name).text["num_hidden_layers"]
    for task, by_depth in parts.items():
        _, whole = query_parts.of_all_layers(by_depth, layers)
        bench.constant(f"{case.name}: seconds of {task}, extrapolated", whole)
        bench.note(
            f"{case.name}: {task}, extrapolated from {case.depths[0]} and {case.depths[1]} layers "
            f"to {layers}: {1e3 * whole:.0f} ms"
        )


def _step(
    bench: Bench, model: CausalLM, case: _Case, depth: int, matrices: Matrices
) -> float | None:
    """Return the seconds of a decode step; None if the noise hides them.

    The time of a short answer is subtracted from that of a long one, which cancels the prompt's.
    """
    vocabulary = model.manifest.vocabulary

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (case.rows, _PROMPT)).tolist()
        return ids

    sizes = {"model": case.name, "layers": depth, "rows": case.rows, "precision": _precision(bench)}
    depths = f"{depth} layer{'s' * (depth != 1)}"
    samples = bench.race(
        f"{case.name}, {depths}, decode steps",
        [
            Runner(
                name=counted(OURS, count),
                run=lambda ids, count=count: model.generate(  # type: ignore[misc]
                    ids, max_new_tokens=count, stop_ids=()
                ),
            )
            for count in (_SHORT, _LONG)
        ],
        draw,
        token_judge({OURS: model}, (), (_SHORT, _LONG)),
        clock=HostClock(),
        parameters=sizes,
        rounds=6,
        record=False,
    )
    step = difference(samples[counted(OURS, _LONG)], samples[counted(OURS, _SHORT)], _LONG - _SHORT)
    if step.median <= 0:
        bench.note(f"{case.name}, {depths}: a decode step is lost in the noise of its prompts")
        return None
    work = decoder_work(model, matrices, rows=case.rows, past=_PROMPT + _LONG / 2)
    bench.record(step, "a decode step", unit="step", work=work, parameters=sizes)
    return step.median


def _extrapolate(bench: Bench, case: _Case, steps: Mapping[int, float]) -> None:
    """Extrapolate the time of a decode step to all layers, from the two depths."""
    shallow, deep = case.depths
    text = random_models.shape_of(case.name).text
    layers = text["num_hidden_layers"]
    layer, whole = query_parts.of_all_layers(steps, layers)
    bench.constant(f"{case.name}: seconds of a layer in a decode step", layer)
    bench.constant(f"{case.name}: seconds of a decode step, extrapolated", whole)
    precision = _precision(bench)
    least, _ = bench.limits.seconds(Work(Matrices.of(text).bytes(precision), 0.0, precision))
    bench.note(
        f"{case.name}, {case.rows} rows: {1e3 * layer:.3f} ms a layer; a step of all {layers} "
        f"layers extrapolated from {shallow} and {deep}: {1e3 * whole:.2f} ms, "
        f"{whole / least:.2f} times what reading the weights takes"
    )


def _prefix(bench: Bench, model: CausalLM, name: str) -> None:
    """Measure forty prompts that share their beginning, with and without a kept prefix."""
    vocabulary = model.manifest.vocabulary
    behind = bench.settings.scaled(_BEHIND, 2)
    judged = list(range(_JUDGED_TOKENS))
    shared: list[int] = np.random.default_rng(1).integers(0, vocabulary, _SHARED).tolist()
    prefix = model.prefill(shared)

    def draw(rng: np.random.Generator) -> list[list[int]]:
        ids: list[list[int]] = rng.integers(0, vocabulary, (behind, _OWN)).tolist()
        return ids

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        whole = outputs["whole prompts"]
        error = float(np.abs(outputs[OURS] - whole).max() / np.abs(whole).max())
        require(error < _OFF[_precision(bench)], f"kept prefix: logits {error:.0e} off")

    bench.race(
        "prompts behind a kept prefix",
        [
            Runner(run=lambda ends: model.logits(ends, prefix=prefix, tokens=judged)),
            Runner(
                name="whole prompts",
                run=lambda ends: model.logits([shared + end for end in ends], tokens=judged),
            ),
        ],
        draw,
        judge,
        unit="prompt",
        items=behind,
        clock=HostClock(),
        parameters={"model": name, "prompts": behind, "shared": _SHARED, "own": _OWN},
        rounds=4,
    )


def _captions(bench: Bench, model: VisionLanguageModel, source: Path, name: str) -> None:
    """Caption new frames, as indexing does, and the same with transformers."""
    frames = _frames(bench, model)
    captioner = VlmCaptioner(model, rows=len(frames), max_new_tokens=_STEPS)
    frame_set = FrameSet.of(frames)

    def ours(_: Any) -> list[list[int]]:
        captioner.cache = PrefixCache()
        return captioner.answers(frame_set, prompts.AGNOSTIC_CAPTION, stop_ids=())

    runners = [Runner(run=ours)]
    if peers.TRANSFORMERS.installed:
        theirs = _by_transformers(bench, model, source, frames)
        runners.append(Runner(name=f"{peers.TRANSFORMERS.name} generate", run=theirs, peer=True))

    def judge(inputs: Any, outputs: Mapping[str, Any]) -> None:
        mine = outputs[OURS]
        judge_answers(f"{name}: captions", captioner, frames, prompts.AGNOSTIC_CAPTION, mine)
        for runner, answers in outputs.items():
            # In fp16 two nearly equal tokens may swap ranks, which changes all that follow.
            same = np.mean([a[0] == b[0] for a, b in zip(answers, mine, strict=True)])
            wrong = same < 0.5 if bench.on_gpu else answers != mine
            require(not wrong, f"{runner}: other captions than ours")

    bench.race(
        "caption new frames",
        runners,
        lambda rng: None,
        judge,
        unit="frame",
        items=len(frames),
        clock=HostClock(),
        parameters={"model": name, "frames": len(frames), "tokens": _STEPS},
        rounds=4,
    )


def _frames(bench: Bench, model: VisionLanguageModel) -> npt.NDArray[np.uint8]:
    height, width = model.manifest.image_size
    size = (bench.settings.scaled(_FRAMES, 2), height // 14, width // 14, 3)
    blocks = np.random.default_rng(2).integers(0, 256, size, np.uint8)
    return blocks.repeat(14, axis=1).repeat(14, axis=2)


def _by_transformers(
    bench: Bench, model: VisionLanguageModel, source: Path, frames: npt.NDArray[np.uint8]
) -> Any:
    """Return a runner that loads transformers' model on its first run.

    A failure to load then drops the peer instead of ending the suite.
    """
    ids = model.layout().expand(model.chat(prompts.about_frame(prompts.AGNOSTIC_CAPTION))).ids
    loaded: list[tuple[TransformersClips, Any]] = []

    def run(_: Any) -> list[list[int]]:
        if not loaded:
            dtype = "float16" if bench.on_gpu else "float32"
            height, width = model.manifest.image_size
            peer = TransformersClips(source, (height, width), _torch_device(bench), dtype)
            loaded.append((peer, peer.prepare(frames[:, None], ids)))
        peer, arguments = loaded[0]
        return peer.captions(arguments, _STEPS)

    return run
