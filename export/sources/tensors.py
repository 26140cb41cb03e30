"""The tensors that a decoder or a vision tower must have, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError

from .checkpoint import Checkpoint

Shapes = dict[str, tuple[int, ...]]

WIDE = "model.layers.0.mlp.gate_proj.weight"
"""A tensor whose rows are the perceptron's width, where the settings leave it out."""

_ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def check_decoder(
    checkpoint: Checkpoint, shape: Any, config: Mapping[str, Any], wide: int, path: Path
) -> None:
    """Raise unless a decoder's tensors have the shapes that its settings say.

    Args:
        checkpoint: the weights.
        shape: the decoder's numbers, a `DecoderShape`.
        config: its settings.
        wide: values of a token inside the perceptron.
        path: of the settings, for messages.

    Raises:
        GranAlignError: a tensor is missing or has another shape, or there is a bias or a norm that
            such a model does not have: transformers would ignore it.
    """
    hidden, width = shape.hidden, shape.head_dim
    rows = {"q": shape.heads * width, "k": shape.kv_heads * width, "v": shape.kv_heads * width}
    linear: Shapes = {f"self_attn.{part}_proj": (rows[part], hidden) for part in "qkv"}
    linear["self_attn.o_proj"] = (hidden, rows["q"])
    linear |= dict.fromkeys(_MLP[:2], (wide, hidden)) | {_MLP[2]: (hidden, wide)}
    # Which layers have biases, and whether heads have norms.
    qwen2 = shape.architecture.startswith("Qwen2")
    biased = _ATTENTION[:3] if qwen2 else _ATTENTION if config.get("attention_bias") else ()
    if config.get("mlp_bias") and shape.architecture.startswith("Llama"):
        biased = (*biased, *_MLP)
    normed = shape.architecture.startswith("Qwen3")
    expected: Shapes = {"model.embed_tokens.weight": (shape.vocabulary, hidden)}
    absent: list[str] = []
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name, size in linear.items():
            expected[f"{prefix}.{name}.weight"] = size
            if name in biased:
                expected[f"{prefix}.{name}.bias"] = size[:1]
            else:
                absent.append(f"{prefix}.{name}.bias")
        for norm in ("input_layernorm", "post_attention_layernorm"):
            expected[f"{prefix}.{norm}.weight"] = (hidden,)
        norms = [f"{prefix}.self_attn.{part}_norm.weight" for part in "qk"]
        expected |= dict.fromkeys(norms, (width,)) if normed else {}
        absent += [] if normed else norms
    expected["model.norm.weight"] = (hidden,)
    if not shape.tied:
        expected["lm_head.weight"] = (shape.vocabulary, hidden)
    check_shapes(checkpoint, expected, path)
    if unknown := [name for name in absent if name in checkpoint]:
        raise GranAlignError(
            f"{checkpoint.folder}: got the tensor {unknown[0]}, expected none in a "
            f"{shape.architecture} with these settings; copy or download the model again"
        )


def check_vision(checkpoint: Checkpoint, config: Mapping[str, Any], wide: int, path: Path) -> None:
    """Raise unless a vision tower's tensors have the shapes that its settings say.

    Args:
        checkpoint: the weights.
        config: the tower's settings, checked before.
        wide: values of a patch inside the perceptron.
        path: of the settings, for messages.

    Raises:
        GranAlignError: a tensor is missing or has another shape.
    """
    hidden, edge = config["hidden_size"], config["patch_size"]
    joined = hidden * config["spatial_merge_size"] ** 2
    linear: Shapes = {
        "merger.mlp.0": (joined, joined),
        "merger.mlp.2": (config["out_hidden_size"], joined),
    }
    kernel = (hidden, 3, config["temporal_patch_size"], edge, edge)
    expected: Shapes = {
        "visual.patch_embed.proj.weight": kernel,
        "visual.merger.ln_q.weight": (hidden,),
    }
    for layer in range(config["depth"]):
        block = f"blocks.{layer}"
        expected |= {f"visual.{block}.norm{n}.weight": (hidden,) for n in (1, 2)}
        linear |= {
            f"{block}.attn.qkv": (3 * hidden, hidden),
            f"{block}.attn.proj": (hidden, hidden),
            f"{block}.mlp.gate_proj": (wide, hidden),
            f"{block}.mlp.up_proj": (wide, hidden),
            f"{block}.mlp.down_proj": (hidden, wide),
        }
    for name, size in linear.items():
        expected |= {f"visual.{name}.weight": size, f"visual.{name}.bias": size[:1]}
    check_shapes(checkpoint, expected, path)


def check_shapes(checkpoint: Checkpoint, expected: Shapes, path: Path) -> None:
    """Raise for the first tensor that is missing or has another shape; `path` is the settings'."""
    for name, shape in expected.items():
        got = checkpoint.shape(name)
        if got != shape:
            raise GranAlignError(
                f"{checkpoint.folder}: got {name} of shape {got}, expected {shape}, as {path.name} "
                f"says; copy or download the model again"
            )
