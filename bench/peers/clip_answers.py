"""Captions of clips, and recognition in them, by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.export.checks.transformers_calls import (
    grid_times,
    image_tokens,
    load_image_processor,
)
from granalign_fast.export.families import family_of, read_vlm


class TransformersClips:
    """A vision-language model in transformers, for clips of frames that have the export's size.

    Args:
        folder: of the model, as transformers saves it.
        image_size: height and width of frames.
        device: device, in torch's notation.
        dtype: precision, in torch's notation.
    """

    def __init__(
        self,
        folder: Path,
        image_size: tuple[int, int],
        device: str = "cpu",
        dtype: str = "float32",
    ) -> None:
        import transformers

        self._source = read_vlm(folder, image_size)
        self._peer = family_of(self._source).peer
        kind = getattr(transformers, self._source.shape.architecture)
        self._model = kind.from_pretrained(folder, dtype=dtype).eval().to(device)
        self._peer.prepare(self._model)
        self._processor = load_image_processor(folder, local_files_only=True)
        self._device = device

    def prepare(
        self, clips: npt.NDArray[np.uint8], ids: Sequence[int], seconds: float = 0.0
    ) -> dict[str, Any]:
        """Return the model's arguments for a prompt about each clip.

        Args:
            clips: (clips, frames, height, width, 3) uint8.
            ids: all tokens of the prompt, those of the frames among them.
            seconds: from a frame to the next.
        """
        import torch

        frames = clips.reshape(-1, *clips.shape[2:])
        images = self._peer.process(self._processor, list(frames), tiles=False)
        span = self._source.vision.temporal
        pixels = self._peer.clips(images, len(clips), span)
        rows = torch.tensor([list(ids)] * len(clips))
        arguments = {"input_ids": rows, "attention_mask": torch.ones_like(rows), **pixels}
        arguments |= image_tokens(self._model, rows)
        if clips.shape[1] > 1:
            arguments |= grid_times(self._model, [span * seconds] * len(clips))
        return {name: tensor.to(self._device) for name, tensor in arguments.items()}

    def captions(self, arguments: Mapping[str, Any], tokens: int) -> list[list[int]]:
        """Return the tokens that follow each prompt, greedy, none ending early."""
        import torch

        self._forget()
        with torch.inference_mode():
            generated = self._model.generate(
                **arguments,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
            )
        answers: list[list[int]] = generated[:, arguments["input_ids"].shape[1] :].tolist()
        return answers

    def shares(
        self, arguments: Mapping[str, Any], yes: Sequence[int], no: Sequence[int]
    ) -> npt.NDArray[np.float64]:
        """Return the probability of the tokens `yes` over that of `yes` and `no`, (clips,)."""
        import torch

        self._forget()
        with torch.inference_mode():
            logits = self._model(**arguments, logits_to_keep=1).logits[:, -1, [*yes, *no]]
            weights = logits.double().softmax(dim=-1)
            shares: npt.NDArray[np.float64] = weights[:, : len(yes)].sum(dim=-1).cpu().numpy()
        return shares

    def _forget(self) -> None:
        """Drop the positions that the families of Qwen-VL keep of the last prompt."""
        if hasattr(self._model.model, "rope_deltas"):
            self._model.model.rope_deltas = None
