"""Sets of published models that work together: what each model is, and the machine of each set.

Commits and licences are facts of the hub. `PublishedModel.read_in` says where each was read. The
numbers of a model's layers are those of its ``config.json`` at the commit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from granalign_fast.errors import GranAlignError

from .manifest import CLIP, LLM, SENTENCE_ENCODER, VLM
from .published_records import (
    DecoderNumbers,
    ModelSet,
    PublishedModel,
    SquareTowerNumbers,
    TowerNumbers,
)

_REGISTRY = "the registry of models in mteb"
_REPOSITORIES = "independent public repositories that agree on the commit"

# The encoder that the presets were chosen with, so every set has it.
_MINILM = PublishedModel(
    SENTENCE_ENCODER,
    "sentence-transformers/all-MiniLM-L6-v2",
    "8b3219a92973c328a8e22fadcfa821b5dc75636a",
    "Apache-2.0",
    "English",
    parameters=22_713_216,
    download=90_868_376,
    read_in=_REGISTRY,
    words=30_522,
    width=384,
)
# The files of both have two bytes a weight, as the memory in the registry says.
_GRANITE_SMALL = PublishedModel(
    SENTENCE_ENCODER,
    "ibm-granite/granite-embedding-small-english-r2",
    "54a8d2616a0844355a5164432d3f6dafb37b17a3",
    "Apache-2.0",
    "English",
    parameters=47_662_464,
    download=95_324_928,
    read_in=_REGISTRY,
    words=50_368,
    width=384,
)
_GTE_MODERNBERT = PublishedModel(
    SENTENCE_ENCODER,
    "Alibaba-NLP/gte-modernbert-base",
    "7ca8b4ca700621b67618669f5378fe5f5820b8e4",
    "Apache-2.0",
    "English",
    parameters=149_014_272,
    download=298_028_544,
    read_in=_REGISTRY,
    words=50_368,
    width=768,
)
_QWEN3_EMBEDDING = PublishedModel(
    SENTENCE_ENCODER,
    "Qwen/Qwen3-Embedding-0.6B",
    "b22da495047858cce924d27d76261e96be6febc0",
    "Apache-2.0",
    "more than 100",
    parameters=595_776_512,
    download=1_191_553_024,
    read_in=_REGISTRY,
    words=151_669,
    width=1024,
    shared=True,
)
_EMBEDDING_GEMMA = PublishedModel(
    SENTENCE_ENCODER,
    "google/embeddinggemma-300m",
    "64614b0b8b64f0c6c1e52b07e4e9a4e8fe4d2da2",
    "Gemma Terms of Use",
    "more than 100",
    parameters=307_581_696,
    download=1_230_326_784,
    read_in=_REGISTRY,
    words=262_144,
    width=768,
    gated=True,
    shared=True,
)
_CLIP = PublishedModel(
    CLIP,
    "openai/clip-vit-base-patch32",
    # This commit has the weights as safetensors; the main branch has them pickled.
    "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "MIT",
    "English",
    parameters=151_277_313,
    download=605_157_884,
    read_in=_REPOSITORIES,
    words=49_408,
    width=512,
    verified=False,
)
_SIGLIP2_BASE = PublishedModel(
    CLIP,
    "google/siglip2-base-patch16-224",
    "75de2d55ec2d0b4efc50b3e9ad70dba96a7b2fa2",
    "Apache-2.0",
    "many",
    parameters=375_187_970,
    download=1_500_751_880,
    read_in=_REGISTRY,
    words=256_000,
    width=768,
)
_SIGLIP2_FINE = PublishedModel(
    CLIP,
    "google/siglip2-base-patch16-256",
    "3f9f96cb90da5dbc758b01813f2f6f1aee24c1ab",
    "Apache-2.0",
    "many",
    parameters=375_234_050,
    download=1_500_936_200,
    read_in=_REGISTRY,
    words=256_000,
    width=768,
)
_SIGLIP2_LARGE = PublishedModel(
    CLIP,
    "google/siglip2-so400m-patch14-384",
    "e8e487298228002f3d8a82e0cd5c8ea9c567f57f",
    "Apache-2.0",
    "many",
    parameters=1_136_008_498,
    download=4_544_033_992,
    read_in=f"{_REGISTRY}, and {_REPOSITORIES}",
    words=256_000,
    width=1152,
)
_QWEN3_SMALL = PublishedModel(
    LLM,
    "Qwen/Qwen3-0.6B",
    "c1899de289a04d12100db370d81485cdf75e47ca",
    "Apache-2.0",
    "119",
    parameters=596_049_920,
    # The file repeats the tied table as lm_head.
    download=1_503_264_768,
    read_in=_REPOSITORIES,
    decoder=DecoderNumbers(
        1024, 3072, 28, 16, 8, vocabulary=151_936, context=40_960, tied=True, head_norms=True
    ),
)
_QWEN3_MIDDLE = PublishedModel(
    LLM,
    "Qwen/Qwen3-1.7B",
    "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e",
    "Apache-2.0",
    "119",
    parameters=1_720_574_976,
    download=4_063_479_808,
    read_in=f"{_REPOSITORIES}; the licence in copies of it",
    decoder=DecoderNumbers(
        2048, 6144, 28, 16, 8, vocabulary=151_936, context=40_960, tied=True, head_norms=True
    ),
)
_LLAMA3 = PublishedModel(
    LLM,
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2",
    "Llama 3 Community License",
    "English",
    parameters=8_030_261_248,
    download=16_060_522_496,
    read_in=f"{_REPOSITORIES}; the licence in the publisher's repository",
    gated=True,
    decoder=DecoderNumbers(4096, 14_336, 32, 32, 8, vocabulary=128_256, context=8192),
)
_SMOLVLM2_500M = PublishedModel(
    VLM,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    "7b375e1b73b11138ff12fe22c8f2822d8fe03467",
    "Apache-2.0",
    "English",
    parameters=507_482_304,
    # The file has float32.
    download=2_029_990_624,
    read_in=f"{_REPOSITORIES}; the licence in copies of its card",
    decoder=DecoderNumbers(960, 2560, 32, 15, 5, vocabulary=49_280, context=8192, head_dim=64),
    tower=SquareTowerNumbers(side=512, patch=16, merge=4, out=960),
)
_SMOLVLM2_2B = PublishedModel(
    VLM,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
    "482adb537c021c86670beed01cd58990d01e72e4",
    "Apache-2.0",
    "English",
    parameters=2_246_784_880,
    download=8_987_139_520,
    read_in=f"{_REPOSITORIES}; the numbers of layers and the file's type from memory",
    decoder=DecoderNumbers(2048, 8192, 24, 32, 32, vocabulary=49_280, context=8192, head_dim=64),
    tower=SquareTowerNumbers(
        side=384, patch=14, merge=3, out=2048, hidden=1152, wide=4304, layers=27, heads=16
    ),
    verified=False,
)
_QWEN25_VL_3B = PublishedModel(
    VLM,
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "66285546d2b821cf421d4f5eb2576359d3770cd3",
    "Qwen Research License: no commercial use",
    "English",
    parameters=3_754_622_976,
    download=7_509_245_952,
    read_in=f"{_REPOSITORIES}; the licence in copies of its card",
    decoder=DecoderNumbers(
        2048, 11_008, 36, 16, 2, vocabulary=151_936, context=128_000, tied=True, biased=True
    ),
    tower=TowerNumbers(wide=3420, out=2048),
)
_VL_MIDDLE = PublishedModel(
    VLM,
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "cc594898137f460bfe9f0759e9844b3ce807cfb5",
    "Apache-2.0",
    "English",
    parameters=8_292_166_656,
    download=16_584_333_312,
    read_in=_REPOSITORIES,
    decoder=DecoderNumbers(
        3584, 18_944, 28, 28, 4, vocabulary=152_064, context=128_000, biased=True
    ),
    tower=TowerNumbers(wide=3420, out=3584),
)
_VL_LARGE = PublishedModel(
    VLM,
    "Qwen/Qwen2.5-VL-32B-Instruct",
    "7cfb30d71a1f4f49a57592323337a4a4727301da",
    "Apache-2.0",
    "English",
    parameters=33_452_718_336,
    download=66_905_436_672,
    read_in=_REPOSITORIES,
    decoder=DecoderNumbers(
        5120, 27_648, 64, 40, 8, vocabulary=152_064, context=128_000, biased=True
    ),
    tower=TowerNumbers(wide=3456, out=5120),
)


def _qwen3_tower(out: int, hidden: int, wide: int, layers: int) -> TowerNumbers:
    """Return the numbers of a Qwen3-VL's vision tower."""
    return TowerNumbers(wide, out, hidden, layers, patch=16, gated=False, positions=2304, mergers=3)


_QWEN3_VL_2B = PublishedModel(
    VLM,
    "Qwen/Qwen3-VL-2B-Instruct",
    "89644892e4d85e24eaac8bacfd4f463576704203",
    "Apache-2.0",
    "many",
    parameters=2_127_532_032,
    download=4_255_064_064,
    read_in=_REPOSITORIES,
    decoder=DecoderNumbers(
        2048, 6144, 28, 16, 8, vocabulary=151_936, context=262_144, tied=True, head_norms=True
    ),
    tower=_qwen3_tower(out=2048, hidden=1024, wide=4096, layers=24),
    verified=False,
)
_QWEN3_VL_4B = PublishedModel(
    VLM,
    "Qwen/Qwen3-VL-4B-Instruct",
    "ebb281ec70b05090aa6165b016eac8ec08e71b17",
    "Apache-2.0",
    "many",
    parameters=4_437_815_808,
    download=8_875_631_616,
    read_in=_REPOSITORIES,
    decoder=DecoderNumbers(
        2560, 9728, 36, 32, 8, vocabulary=151_936, context=262_144, tied=True, head_norms=True
    ),
    tower=_qwen3_tower(out=2560, hidden=1024, wide=4096, layers=24),
    verified=False,
)
_QWEN3_VL_8B = PublishedModel(
    VLM,
    "Qwen/Qwen3-VL-8B-Instruct",
    "0c351dd01ed87e9c1b53cbc748cba10e6187ff3b",
    "Apache-2.0",
    "many",
    parameters=8_767_123_696,
    download=17_534_247_392,
    read_in=_REPOSITORIES,
    decoder=DecoderNumbers(
        4096, 12_288, 36, 32, 8, vocabulary=151_936, context=262_144, head_norms=True
    ),
    tower=_qwen3_tower(out=4096, hidden=1152, wide=4304, layers=27),
    verified=False,
)

MODEL_SETS: Mapping[str, ModelSet] = {
    one.name: one
    for one in (
        ModelSet(
            "laptop",
            "CPU with 4 GB",
            "int4",
            (_MINILM, _SIGLIP2_BASE, _QWEN3_SMALL, _SMOLVLM2_500M),
        ),
        ModelSet(
            "workstation",
            "GPU of 24 GB",
            "fp16",
            (_MINILM, _SIGLIP2_FINE, _QWEN3_MIDDLE, _VL_MIDDLE),
        ),
        ModelSet(
            "server",
            "GPU of 80 GB or more",
            "fp16",
            (_MINILM, _SIGLIP2_FINE, _QWEN3_MIDDLE, _VL_LARGE),
        ),
        # The models of GranAlign's authors.
        ModelSet("paper", "GPU of 40 GB or more", "fp16", (_MINILM, _CLIP, _LLAMA3, _VL_MIDDLE)),
    )
}
"""Sets by name. Each has the best models that fit its machine and that we can export: see `sizes`
in `export`. On a GPU frames of 256 pixels cost little; so400m does not fit beside the
vision-language models."""

ALTERNATIVES: Mapping[str, PublishedModel] = {
    model.name: model
    for model in (
        _GRANITE_SMALL,
        _GTE_MODERNBERT,
        _QWEN3_EMBEDDING,
        _EMBEDDING_GEMMA,
        _SIGLIP2_BASE,
        _SIGLIP2_FINE,
        _SIGLIP2_LARGE,
        _SMOLVLM2_2B,
        _QWEN3_VL_2B,
        _QWEN25_VL_3B,
        _QWEN3_VL_4B,
        _QWEN3_VL_8B,
    )
}
"""Models by name that can take the place of a set's model of their kind, see `model_set`."""

PRECISIONS = ("fp32", "fp16", "int4")
"""Precisions of a set."""


def model_set(name: str, instead: Sequence[str] = ()) -> ModelSet:
    """Return a set by its name.

    Args:
        name: one of `MODEL_SETS`.
        instead: names of `ALTERNATIVES`; each takes the place of the set's model of its kind.

    Raises:
        GranAlignError: no set or no alternative has this name, or two alternatives are of one kind.
    """
    if name not in MODEL_SETS:
        raise GranAlignError(f"models: got {name!r}, expected one of: {', '.join(MODEL_SETS)}")
    chosen: dict[str, PublishedModel] = {}
    for other in instead:
        if other not in ALTERNATIVES:
            raise GranAlignError(
                f"models: got {other!r} in place of a model of {name}, expected one of: "
                f"{', '.join(ALTERNATIVES)}"
            )
        model = ALTERNATIVES[other]
        if chosen.setdefault(model.kind, model) is not model:
            raise GranAlignError(
                f"models: got {chosen[model.kind].name} and {other}, which are both of kind "
                f"{model.kind}, expected one of them"
            )
    whole = MODEL_SETS[name]
    models = tuple(chosen.get(model.kind, model) for model in whole.models)
    return replace(whole, models=models)


def precision_of(kind: str, precision: str) -> str:
    """Return a model's precision in a set of this precision: encoders have no int4.

    The embeddings of sentences decide most, so their encoder is not rounded, whatever its size:
    what int8 costs a large one has not been measured on published weights.
    """
    encoders = {SENTENCE_ENCODER: "fp32", CLIP: "int8"}
    return encoders.get(kind, precision) if precision == "int4" else precision
