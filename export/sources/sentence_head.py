"""The modules `Dense` of a sentence-transformers folder: layers on a text's pooled embedding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError
from granalign_fast.models.sources import weights_files

from .checkpoint import Checkpoint
from .encoders.encoder import HEAD_ACTIVATIONS, HeadLayer
from .folder import read_object
from .language_model import positive

_OTHERWISE = {
    "module_input_name": "sentence_embedding",
    "module_output_name": "sentence_embedding",
    "use_residual": False,
}
"""Settings that must have these values where a folder states them; null is the same."""


def read_head(folders: Sequence[Path], width: int) -> tuple[HeadLayer, ...]:
    """Read the layers in their order.

    Args:
        folders: of the modules.
        width: values of a pooled embedding.

    Raises:
        GranAlignError: a layer has other sizes than its settings say, its input is not the output
            of the step before, or it has a setting that the graphs lack.
    """
    layers: list[HeadLayer] = []
    for folder in folders:
        layer = _read_layer(folder)
        if layer.weight.shape[0] != width:
            raise GranAlignError(
                f"{folder}: got a layer of {layer.weight.shape[0]} values, expected {width}, as "
                f"the step before it gives; copy or download the model again"
            )
        layers.append(layer)
        width = layer.weight.shape[1]
    return tuple(layers)


def head_files(folders: Sequence[Path]) -> list[Path]:
    """Return the files of the layers' weights and settings, which shape every embedding."""
    return [file for folder in folders for file in (*weights_files(folder), folder / "config.json")]


def _read_layer(folder: Path) -> HeadLayer:
    path = folder / "config.json"
    settings = read_object(path)
    for name, value in _OTHERWISE.items():
        if settings.get(name) not in (None, value):
            raise GranAlignError(
                f"{path}: got {name} {settings[name]!r}, expected {value!r}; choose another model"
            )
    # Without a name, torch's own default counts.
    activation = str(settings.get("activation_function", "torch.nn.modules.activation.Tanh"))
    known = {f"torch.nn.modules.{m}.{n}": n for m, n in _MODULES.items()}
    if activation not in known:
        raise GranAlignError(
            f"{path}: got the activation {activation!r}, expected one of {sorted(known)}; choose "
            f"another model"
        )
    inputs, outputs = (positive(settings, f"{name}_features", path) for name in ("in", "out"))
    checkpoint = Checkpoint(folder)
    weight = checkpoint.read("linear.weight")
    if weight.shape != (outputs, inputs):
        raise GranAlignError(
            f"{folder}: tensor linear.weight has shape {weight.shape}, expected "
            f"{(outputs, inputs)}; copy or download the model again"
        )
    bias = checkpoint.read("linear.bias") if settings.get("bias", True) else None
    if bias is not None and bias.shape != (outputs,):
        raise GranAlignError(
            f"{folder}: tensor linear.bias has shape {bias.shape}, expected {(outputs,)}; copy or "
            f"download the model again"
        )
    return HeadLayer(np.ascontiguousarray(weight.T), bias, known[activation])


_MODULES = dict(zip(("linear", "activation"), HEAD_ACTIVATIONS, strict=True))
"""torch's modules of the activations that the graphs have."""
