"""The families of sentence encoders that we write node by node: one entry for each.

An entry names what is in two other files: the encoder in NumPy (`sources.encoders`) and its graph
(`graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .graphs.bert import build_bert
from .graphs.decoder_encoder import build_decoder_encoder
from .graphs.modernbert import build_modernbert
from .sources.encoders.bert import Bert, fits_bert
from .sources.encoders.decoder import load_gemma3, load_qwen3
from .sources.encoders.encoder import Encoder
from .sources.encoders.modernbert import ModernBert, fits_modernbert
from .sources.encoders.mpnet import fits_mpnet, load_mpnet
from .sources.encoders.roberta import fits_roberta, load_roberta


@dataclass(frozen=True)
class EncoderFamily:
    """A family of sentence encoders.

    Attributes:
        fits: whether a model with this ``config.json`` is one that we compute; others of the same
            `model_type` go through optimum.
        load: reads the weights; arguments and errors as of `Bert.load`.
        build: writes a graph; arguments as of `build_encoder`, from `model` on.
        calibrated: whether its int8 graph needs the ranges of `measure_ranges`.
        shared: whether its graphs share one file of weights; otherwise each holds them all, which
            ONNX limits to 2 GB.
    """

    fits: Callable[[Mapping[str, Any]], bool]
    load: Callable[..., Encoder]
    build: Callable[..., Any]
    calibrated: bool = True
    shared: bool = False


def _decoder(load: Callable[..., Encoder]) -> EncoderFamily:
    """Return a family of the decoder type. Settings that it lacks raise when they are read."""
    fits: Callable[[Mapping[str, Any]], bool] = lambda config: True  # noqa: E731
    return EncoderFamily(fits, load, build_decoder_encoder, calibrated=False, shared=True)


_ROBERTA = EncoderFamily(fits_roberta, load_roberta, build_bert)

ENCODER_FAMILIES: Mapping[str, EncoderFamily] = {
    "bert": EncoderFamily(fits_bert, Bert.load, build_bert),
    "camembert": _ROBERTA,
    "gemma3_text": _decoder(load_gemma3),
    "modernbert": EncoderFamily(fits_modernbert, ModernBert.load, build_modernbert),
    "mpnet": EncoderFamily(fits_mpnet, load_mpnet, build_bert),
    "qwen3": _decoder(load_qwen3),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""Families by the `model_type` of ``config.json``."""


def encoder_family(config: Mapping[str, Any]) -> EncoderFamily | None:
    """Return the family of a model with these settings; None if optimum has to export it."""
    family = ENCODER_FAMILIES.get(str(config.get("model_type")))
    return family if family is not None and family.fits(config) else None
