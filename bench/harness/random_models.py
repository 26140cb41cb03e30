"""Write and export models of random weights in the shape of real ones, without torch.

Speed depends on the shape alone, with one exception: random weights never end an answer, so
captions and rewrites run to their greatest length.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.errors import GranAlignError

from . import random_qwen_vl, random_smolvlm
from .random_qwen_vl import interleaved, sections, vision, vision3
from .random_tokenizer import IDS, write_tokenizer

_SPREAD = 1.4
"""Standard deviation of a matrix's products with unit vectors: large enough for greedy tokens to
differ between steps."""
_BLOCK = 1_048_573
"""Random numbers that the weights repeat; a prime, so that no two rows of a matrix are equal."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a decoder, and of a vision-language model's image tower.

    Attributes:
        kind: ``llm`` or ``vlm``.
        architecture: as in ``config.json``.
        text: settings of the decoder.
        vision: settings of the image tower; empty for a language model.
        image_size: height and width of frames.
        precision: of the export.
    """

    kind: str
    architecture: str
    text: Mapping[str, Any]
    vision: Mapping[str, Any] = field(default_factory=dict)
    image_size: tuple[int, int] = (112, 112)
    precision: str = "fp32"

    @property
    def weights(self) -> int:
        """Number of weights."""
        return sum(int(np.prod(shape)) for shape in _shapes(self).values())

    @property
    def largest(self) -> int:
        """Number of weights of the largest tensor."""
        return max(int(np.prod(shape)) for shape in _shapes(self).values())


def _text(
    hidden: int, wide: int, layers: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": IDS["<|im_end|>"],
        **more,
    }


_LLAMA, _QWEN, _QWEN3 = "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"
_MODEL_TYPES = {_LLAMA: "llama", _QWEN: "qwen2", _QWEN3: "qwen3"}
QWEN_VL, QWEN3_VL = random_qwen_vl.QWEN2_5, random_qwen_vl.QWEN3
SMOL = random_smolvlm.ARCHITECTURE
SHAPES: Mapping[str, ModelShape] = {
    "llama-mini": ModelShape("llm", _LLAMA, _text(128, 384, 4, 4, 2, 2048)),
    "llama-108m": ModelShape("llm", _LLAMA, _text(768, 2304, 12, 12, 4, 16384)),
    "llama3-8b": ModelShape(
        *("llm", _LLAMA, _text(4096, 14336, 32, 32, 8, 128256, rope_theta=500000.0)),
        precision="int4",
    ),
    "qwen3-0.6b": ModelShape(
        "llm",
        _QWEN3,
        _text(
            *(1024, 3072, 28, 16, 8, 151936),
            head_dim=128,
            tie_word_embeddings=True,
            rope_theta=1e6,
            max_position_embeddings=40960,
        ),
        precision="int4",
    ),
    "qwen2.5-7b": ModelShape(
        *("llm", _QWEN, _text(3584, 18944, 28, 28, 4, 152064, rope_theta=1e6)), precision="int4"
    ),
    "qwen2.5-vl-mini": ModelShape(
        *("vlm", QWEN_VL, _text(128, 384, 4, 4, 2, 2048, **sections(4, 6, 6))),
        vision(64, 192, 4, 4, 128, [1, 3]),
    ),
    "qwen2.5-vl-112m": ModelShape(
        "vlm",
        QWEN_VL,
        _text(768, 2304, 12, 12, 2, 16384, tie_word_embeddings=True, **sections(8, 12, 12)),
        vision(384, 1152, 8, 6, 768, [3, 7]),
        (336, 560),
    ),
    "qwen2.5-vl-3b": ModelShape(
        "vlm",
        QWEN_VL,
        _text(
            *(2048, 11008, 36, 16, 2, 151936),
            tie_word_embeddings=True,
            rope_theta=1e6,
            max_position_embeddings=128000,
            **sections(16, 24, 24),
        ),
        vision(1280, 3420, 32, 16, 2048, [7, 15, 23, 31]),
        (336, 560),
        "int4",
    ),
    "qwen3-vl-mini": ModelShape(
        *("vlm", QWEN3_VL, _text(128, 384, 4, 4, 2, 2048, head_dim=32, **interleaved(6, 5, 5))),
        vision3(64, 192, 4, 4, 128, [0, 2]),
        (128, 96),
    ),
    "qwen3-vl-109m": ModelShape(
        *("vlm", QWEN3_VL),
        _text(
            *(768, 2304, 10, 12, 4, 16384),
            head_dim=64,
            tie_word_embeddings=True,
            **interleaved(12, 10, 10),
        ),
        vision3(384, 1152, 8, 6, 768, [1, 3, 5]),
        (384, 640),
    ),
    "smolvlm2-mini": ModelShape(
        *("vlm", SMOL, _text(96, 256, 4, 6, 2, 2048)),
        random_smolvlm.vision(64, 192, 2, 4, side=64, patch=8, merge=2),
        (64, 64),
    ),
    "smolvlm2-108m": ModelShape(
        *("vlm", SMOL, _text(576, 1536, 20, 9, 3, 16384)),
        random_smolvlm.vision(384, 1536, 8, 6, side=512, patch=16, merge=4),
        (512, 512),
    ),
    "smolvlm2-500m": ModelShape(
        "vlm",
        SMOL,
        _text(*(960, 2560, 32, 15, 5, 49280), rope_theta=1e5, max_position_embeddings=8192),
        random_smolvlm.vision(768, 3072, 12, 12, side=512, patch=16, merge=4),
        (512, 512),
        "int4",
    ),
    "qwen2.5-vl-7b": ModelShape(
        "vlm",
        QWEN_VL,
        _text(3584, 18944, 28, 28, 4, 152064, rope_theta=1e6, **sections(16, 24, 24)),
        vision(1280, 3420, 32, 16, 3584, [7, 15, 23, 31]),
        (336, 560),
        "int4",
    ),
}


def shape_of(name: str) -> ModelShape:
    """Return a shape by its name; ``llama3-8b@4`` is ``llama3-8b`` cut to 4 layers.

    Raises:
        GranAlignError: the name is unknown, or the model has fewer layers.
    """
    base, cut, layers = name.partition("@")
    if base not in SHAPES:
        raise GranAlignError(f"random model: got {name!r}, expected some of: {', '.join(SHAPES)}")
    shape = SHAPES[base]
    if not cut:
        return shape
    largest = shape.text["num_hidden_layers"]
    if not layers.isdigit() or not 0 < int(layers) <= largest:
        raise GranAlignError(
            f"random model: got {name!r}, expected 1 to {largest} layers behind '@'"
        )
    depth = int(layers)
    tower = dict(shape.vision)
    if shape.architecture == SMOL:
        tower["num_hidden_layers"] = min(tower["num_hidden_layers"], depth)
    elif tower:
        tower = random_qwen_vl.cut(tower, depth)
    return replace(shape, text={**shape.text, "num_hidden_layers": depth}, vision=tower)


def write_source(name: str, folder: Path) -> Path:
    """Write a folder as transformers would save such a model, unless it exists; return it.

    Raises:
        GranAlignError: the name is unknown, or memory or disk space does not suffice.
    """
    shape = shape_of(name)
    if (folder / "model.safetensors").is_file():
        return folder
    width = 4 if shape.precision == "fp32" else 2
    _check_disk(name, shape.weights * width, folder.parent)
    folder.mkdir(parents=True)
    block = (
        np.random.default_rng(0).standard_normal(_BLOCK)
        * _SPREAD
        / shape.text["hidden_size"] ** 0.5
    )
    block = block.astype(np.float32 if width == 4 else np.float16)
    _write_weights(_shapes(shape), block, folder / "model.safetensors")
    _write_settings(shape, folder)
    image, video = random_qwen_vl.IMAGE, random_qwen_vl.VIDEO
    if shape.architecture == SMOL:  # a clip is several images
        image = video = random_smolvlm.IMAGE
    write_tokenizer(folder, shape.text["vocab_size"], image, video)
    return folder


def write_export(name: str, folder: Path, *, precision: str | None = None) -> Path:
    """Write such a model, export it to ``folder/llm`` or ``folder/vlm``, and return that path.

    The export is not compared with transformers; the suites judge its outputs.

    Raises:
        GranAlignError: as for `write_source`.
    """
    from granalign_fast.export.families import read_vlm
    from granalign_fast.export.llm import write_llm
    from granalign_fast.export.sources.language_model import LlmSource
    from granalign_fast.export.vlm import write_vlm
    from granalign_fast.files import appearing
    from granalign_fast.models.manifest import LlmManifest

    shape = shape_of(name)
    out = folder / shape.kind
    if out.is_dir():
        return out
    source = write_source(name, folder / "sources" / name)
    precision = precision or shape.precision
    with appearing(out) as draft:
        manifest: LlmManifest
        if shape.kind == "llm":
            manifest = write_llm(LlmSource.read(source), draft, precision=precision, name=name)
        else:
            read = read_vlm(source, shape.image_size)
            manifest = write_vlm(read, draft, precision=precision, name=name)
        replace(manifest, validation={"random_weights": 1.0}).write(draft)
    return out


def _check_disk(name: str, needed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    disk = shutil.disk_usage(folder).free
    if 2.5 * needed > disk:
        raise GranAlignError(
            f"{name}: got {disk >> 30} GiB of free disk, expected {int(2.5 * needed) >> 30}; "
            f"choose a smaller model, or set TMPDIR to a larger disk"
        )


def _write_weights(
    shapes: Mapping[str, tuple[int, ...]], block: npt.NDArray[Any], path: Path
) -> None:
    """Write safetensors, one tensor in memory at a time: lengths, a header, and the values."""
    kind, end, entries = "F32" if block.itemsize == 4 else "F16", 0, {}
    for name, size in shapes.items():
        start, end = end, end + int(np.prod(size)) * block.itemsize
        entries[name] = {"dtype": kind, "shape": size, "data_offsets": [start, end]}
    header = json.dumps({"__metadata__": {"format": "pt"}, **entries}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name, size in shapes.items():
            file.write(_weight(name, size, block).data)


def _shapes(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor, by its published name."""
    text = shape.text
    hidden, wide = text["hidden_size"], text["intermediate_size"]
    head = text.get("head_dim", hidden // text["num_attention_heads"])
    queries, keys = head * text["num_attention_heads"], head * text["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (text["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    if not text["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], hidden)
    for layer in range(text["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": (keys, hidden),
            f"{prefix}.self_attn.v_proj.weight": (keys, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, queries),
            f"{prefix}.mlp.gate_proj.weight": (wide, hidden),
            f"{prefix}.mlp.up_proj.weight": (wide, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, wide),
        }
        if shape.architecture in (_QWEN3, QWEN3_VL):
            shapes |= {f"{prefix}.self_attn.{part}_norm.weight": (head,) for part in "qk"}
        elif shape.architecture in (_QWEN, QWEN_VL):
            for part, size in (("q", queries), ("k", keys), ("v", keys)):
                shapes[f"{prefix}.self_attn.{part}_proj.bias"] = (size,)
    if shape.architecture == SMOL:
        return random_smolvlm.shapes(shapes, text, shape.vision)
    if shape.vision:
        return random_qwen_vl.shapes(shape.architecture, shapes, shape.vision)
    return shapes


def _weight(name: str, shape: tuple[int, ...], block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if len(shape) == 1 and "bias" not in name:  # gains of norms
        return np.ones(shape, block.dtype)
    return np.resize(rotated(block, name), shape)


def rotated(block: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return a tensor's random numbers, which begin elsewhere for each name.

    ONNX Runtime keeps equal weights once, so that a model of equal layers would look small.
    """
    return np.roll(block, zlib.crc32(name.encode()) % len(block))


def _write_settings(shape: ModelShape, folder: Path) -> None:
    name = shape.architecture
    if name == SMOL:
        files = random_smolvlm.settings(shape.text, shape.vision)
    elif shape.vision:
        files = random_qwen_vl.settings(name, shape.text, shape.vision)
    else:
        kind = {"architectures": [name], "model_type": _MODEL_TYPES[name]}
        files = {"config.json": {**kind, **shape.text}}
    for file, values in files.items():
        _write(folder / file, values)
    _write(folder / "generation_config.json", {"eos_token_id": IDS["<|im_end|>"]})


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
