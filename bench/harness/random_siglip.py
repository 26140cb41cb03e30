"""Write a SigLIP of random weights in the shape of a published one, exported in int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.export.graphs.clip_shapes import ImageShape, Levels, TextShape, Transformer
from granalign_fast.export.graphs.clip_towers import write_towers
from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.files import appearing, sha256_of
from granalign_fast.models.manifest import FrameEncoderManifest

from .random_models import rotated
from .random_tokenizer import text_parts

_BLOCK = 1_048_573
"""Random numbers that the weights repeat; a prime, so that no two rows of a matrix are equal."""
_STACK = Transformer(768, 3072, 12, 12, "gelu_pytorch_tanh", 1e-6)
_TOKENS, _WORDS, _SIDE, _PATCH = 64, 256_000, 224, 16
_HALF = (0.5, 0.5, 0.5)


def write_siglip2_base(out: Path) -> Path:
    """Write a model in the shape of ``google/siglip2-base-patch16-224`` to a folder; return it."""
    image = ImageShape(_STACK, _SIDE, _PATCH, _STACK.hidden, Levels(1 / 255, _HALF, _HALF))
    text = TextShape(_STACK, _WORDS, _TOKENS, _STACK.hidden, end=1)
    preprocessing: dict[str, Any] = {
        "resize": [_SIDE, _SIDE],
        "crop": [_SIDE, _SIDE],
        "resample": 2,
    }
    with appearing(out) as draft:
        write_towers(draft, "siglip", [image, text], _RandomTensors(), "int8")
        _write_tokenizer(draft)
        FrameEncoderManifest(
            source=out.name,
            weights_sha256="0" * 64,
            source_sha256="0" * 64,
            files={path.name: sha256_of(path) for path in sorted(draft.iterdir())},
            precision="int8",
            dim=_STACK.hidden,
            max_tokens=_TOKENS,
            preprocessing=preprocessing,
            tools={},
            validation={"random_weights": 1.0},
        ).write(draft)
    return out


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of the published size, which pads texts as SigLIP's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = text_parts(_WORDS - len(letters))
    words = [*letters, *map("".join, merges)]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.enable_truncation(_TOKENS)
    tokenizer.enable_padding(length=_TOKENS, pad_id=0, pad_token=words[0])
    tokenizer.save(str(folder / "tokenizer.json"))


class _RandomTensors:
    """The tensors of SigLIP by their names in transformers; none is kept in memory."""

    def __init__(self) -> None:
        block = np.random.default_rng(0).standard_normal(_BLOCK)
        self._block: Float32 = block.astype(np.float32)

    def __contains__(self, name: str) -> bool:
        return True

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape that a name implies."""
        hidden, wide, grid = _STACK.hidden, _STACK.wide, _SIDE // _PATCH
        whole: dict[str, tuple[int, ...]] = {
            "patch_embedding.weight": (hidden, 3, _PATCH, _PATCH),
            "token_embedding.weight": (_WORDS, hidden),
            "head.probe": (1, 1, hidden),
            "in_proj_weight": (3 * hidden, hidden),
            "in_proj_bias": (3 * hidden,),
            "fc1.weight": (wide, hidden),
            "fc1.bias": (wide,),
            "fc2.weight": (hidden, wide),
            "position_embedding.weight": (
                grid**2 if name.startswith("vision") else _TOKENS,
                hidden,
            ),
        }
        for end, size in whole.items():
            if name.endswith(end):
                return size
        matrix = name.endswith(("proj.weight", "head.weight"))
        return (hidden, hidden) if matrix else (hidden,)

    def read(self, name: str) -> Float32:
        """Return a tensor; gains of norms are 1."""
        size = self.shape(name)
        if "norm" in name and name.endswith(".weight"):
            return np.ones(size, np.float32)
        scale = np.float32(1 if "embedding" in name else size[-1] ** -0.5)
        return np.resize(rotated(self._block, name), size) * scale

    def slices(self, name: str) -> Iterator[Float32]:
        """Return a tensor in slices of at most 8192 rows."""
        whole = self.read(name)
        for start in range(0, len(whole), 8192):
            yield whole[start : start + 8192]
