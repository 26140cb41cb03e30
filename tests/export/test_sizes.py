"""The computed sizes of models: against published numbers of weights, and against true exports."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import tiny_llm, tiny_qwen3_vl, tiny_vlm
from helpers.tiny_decoder import write_bare_decoder
from safetensors.numpy import load_file

from granalign_fast.export.sentence_encoder import export_sentence_encoder
from granalign_fast.export.sizes import disk_bytes, held_bytes, memory_bytes, set_memory_bytes
from granalign_fast.models.manifest import KINDS
from granalign_fast.models.published import (
    ALTERNATIVES,
    MODEL_SETS,
    PRECISIONS,
    precision_of,
)
from granalign_fast.models.published_records import (
    DecoderNumbers,
    PublishedModel,
    SquareTowerNumbers,
    TowerNumbers,
)

MODELS = {model.name: model for models in MODEL_SETS.values() for model in models.models}
MODELS |= {name: model for name, model in ALTERNATIVES.items() if model.decoder is not None}
DECODERS = [model for model in MODELS.values() if model.decoder is not None]


@pytest.mark.parametrize("model", DECODERS, ids=lambda model: model.name)
def test_the_numbers_give_the_published_number_of_weights(model: PublishedModel) -> None:
    """The hub counts the weights of each file; the rule adds the angles and a second kernel."""
    d, t = model.decoder, model.tower
    assert d is not None
    added = d.context * d.head_dim
    if isinstance(t, TowerNumbers):
        added += 3 * t.patch**2 * t.hidden
    if isinstance(t, TowerNumbers) and t.positions:
        # The table is interpolated to a frame's 960 patches, and contains the patches' bias.
        added += (960 - t.positions - 1) * t.hidden
    if isinstance(t, SquareTowerNumbers):
        # Kernel and positions twice, and two rows for all norms. Folded into products: the norms,
        # and the biases of patches, query, key, value and the perceptron's first half.
        added += (3 * t.patch**2 + t.patches + 2) * t.hidden
        added -= t.hidden + 2 * t.hidden + t.layers * (4 * t.hidden + 3 * t.hidden + t.wide)
    assert disk_bytes(model, "fp32") / 4 - added == model.parameters
    assert disk_bytes(model, "fp16") / 2 - added == model.parameters


def published(kind: str, numbers: DecoderNumbers, tower: TowerNumbers | None) -> PublishedModel:
    """A model with these numbers; its other facts do not matter here."""
    return PublishedModel(kind, "a/b", "0", "", "", 0, 0, "", decoder=numbers, tower=tower)


def numbers_of(config: Mapping[str, Any]) -> DecoderNumbers:
    """The numbers of a ``config.json``."""
    heads = config["num_attention_heads"]
    return DecoderNumbers(
        config["hidden_size"],
        config["intermediate_size"],
        config["num_hidden_layers"],
        heads,
        config["num_key_value_heads"],
        config["vocab_size"],
        config["max_position_embeddings"],
        head_dim=config.get("head_dim", config["hidden_size"] // heads),
        tied=config["tie_word_embeddings"],
        biased=config.get("model_type") in ("qwen2", "qwen2_5_vl"),
        head_norms=config.get("model_type") == "qwen3",
    )


def size_of(folder: Path) -> int:
    """Bytes of a folder's files of weights; graphs without such a file hold their weights."""
    files = list(folder.glob("*.onnx_data")) or list(folder.glob("*.onnx"))
    return sum(path.stat().st_size for path in files)


# Large enough that pages, 2 KB a tensor on average, are a small part.
WIDE = {"hidden_size": 512, "intermediate_size": 1056, "vocab_size": 6000}
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": tiny_llm.QWEN2 | {"tie_word_embeddings": True},
    "qwen3": tiny_llm.QWEN3 | {"tie_word_embeddings": True, "head_dim": 32},
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_language_model_on_disk(tmp_path: Path, family: str, precision: str) -> None:
    config = tiny_llm.LLAMA | WIDE | FAMILIES[family]
    out = tiny_llm.write_unchecked(tmp_path, config, precision=precision)
    computed = disk_bytes(published("llm", numbers_of(config), None), precision)
    assert computed == pytest.approx(size_of(out), rel=0.016)
    assert computed <= size_of(out), "nothing is counted twice"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("tied", [True, False])
def test_a_vision_language_model_on_disk(tmp_path: Path, tied: bool, precision: str) -> None:
    vision = tiny_vlm.VISION | {"hidden_size": 160, "intermediate_size": 420}
    config = tiny_vlm.PUBLISHED | WIDE | {"tie_word_embeddings": tied}
    config |= {"num_attention_heads": 32, "vision_config": vision | {"out_hidden_size": 512}}
    out = tiny_vlm.write_unchecked_vlm(tmp_path, config, precision=precision)
    tower = TowerNumbers(wide=420, out=512, hidden=160, layers=vision["depth"])
    computed = disk_bytes(published("vlm", numbers_of(config), tower), precision)
    # A rounded weight is three tensors, each on pages of its own.
    assert computed == pytest.approx(size_of(out), rel=0.025 if precision == "int4" else 0.012)
    assert computed <= size_of(out)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_qwen3_vl_on_disk(tmp_path: Path, precision: str) -> None:
    """The frame has the usual size: the interpolated positions are a part of the weights."""
    vision = {"hidden_size": 160, "intermediate_size": 420, "out_hidden_size": 512}
    config = copy.deepcopy(tiny_qwen3_vl.GQA_TIED)
    config["vision_config"] |= vision
    config["text_config"] |= WIDE | {"max_position_embeddings": 4096}
    size = (384, 640)
    out = tiny_qwen3_vl.write_unchecked_qwen3_vl(
        tmp_path, config, precision=precision, image_size=size
    )
    whole = config["vision_config"]
    tower = TowerNumbers(
        whole["intermediate_size"],
        whole["out_hidden_size"],
        whole["hidden_size"],
        whole["depth"],
        whole["patch_size"],
        gated=False,
        positions=whole["num_position_embeddings"],
        mergers=len(whole["deepstack_visual_indexes"]),
    )
    numbers = numbers_of(config["text_config"] | {"model_type": "qwen3"})
    computed = disk_bytes(published("vlm", numbers, tower), precision)
    assert computed == pytest.approx(size_of(out), rel=0.025 if precision == "int4" else 0.012)
    assert computed <= size_of(out)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_sentence_encoder_on_disk(minilm: Path, tmp_path: Path, precision: str) -> None:
    """The published weights themselves; their pooler is not exported."""
    out = export_sentence_encoder(minilm, tmp_path / "out", precision=precision)
    (model,) = (m for m in MODELS.values() if m.kind == "sentence-encoder")
    assert disk_bytes(model, precision) == pytest.approx(size_of(out), rel=0.01)


def test_bytes_of_a_cache() -> None:
    """Keys and values of a batch: against the shape of the arrays, and growing with it."""
    small = DecoderNumbers(64, 96, 1, 8, 2, vocabulary=320, context=512, head_dim=8, tied=True)
    large = DecoderNumbers(64, 96, 3, 8, 2, vocabulary=320, context=512, head_dim=8, tied=True)
    for precision, dtype in (("fp16", np.float16), ("fp32", np.float32), ("int4", np.float32)):
        work = [
            memory_bytes(one, precision) - held_bytes(one, precision)
            for one in (published("llm", small, None), published("llm", large, None))
        ]
        token = np.empty((2, 2, 2, 8), dtype).nbytes  # two more layers
        tokens, rest = divmod(work[1] - work[0], token)
        assert rest == 0 and 7 * 64 < tokens < 7 * 1000


_HELD = """
import sys
from pathlib import Path
from granalign_fast.models.language_model import CausalLM
from granalign_fast.models.vision_language_model import VisionLanguageModel

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

kind = {"llm": CausalLM, "vlm": VisionLanguageModel}
first = kind[sys.argv[1]](sys.argv[2])
before, model = anonymous(), kind[sys.argv[1]](sys.argv[3])
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process in /proc")
@pytest.mark.parametrize("kind", ["llm", "vlm"])
def test_the_computed_memory_is_that_of_a_process(tmp_path: Path, kind: str) -> None:
    """A process loads a small int4 model, for what it needs once, then a larger one."""
    config = {"tie_word_embeddings": True, "num_hidden_layers": 6}
    folders = []
    for hidden in (128, 1024):
        sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "vocab_size": 4000}
        sizes["num_attention_heads"] = hidden // 16
        part = tmp_path / str(hidden)
        if kind == "llm":
            whole = tiny_llm.LLAMA | config | sizes
            folders.append(tiny_llm.write_unchecked(part, whole, precision="int4"))
            tower = None
        else:
            vision = tiny_vlm.VISION | {"hidden_size": 640, "intermediate_size": 1280}
            vision |= {"num_heads": 16, "out_hidden_size": hidden}
            whole = tiny_vlm.PUBLISHED | config | sizes | {"vision_config": vision}
            folders.append(tiny_vlm.write_unchecked_vlm(part, whole, precision="int4"))
            tower = TowerNumbers(wide=1280, out=hidden, hidden=640, layers=vision["depth"])
    numbers = numbers_of(whole)
    run = subprocess.run(
        (sys.executable, "-c", _HELD, kind, *map(str, folders)),
        check=True,
        capture_output=True,
        text=True,
    )
    computed = held_bytes(published(kind, numbers, tower), "int4")
    assert int(run.stdout) == pytest.approx(computed, rel=0.1)


def test_a_set_fits_its_machine() -> None:
    most = {"laptop": 4e9, "workstation": 24e9, "server": 80e9, "paper": 40e9}
    assert most.keys() == MODEL_SETS.keys()
    for name, models in MODEL_SETS.items():
        assert f"{most[name] / 1e9:.0f} GB" in models.machine
        memory = set_memory_bytes(models)
        assert name != "laptop" or round(memory / 1e9, 1) <= 2.0, "half of the machine's"
        assert memory <= most[name]
        assert memory >= sum(
            disk_bytes(model, precision_of(model.kind, models.precision))
            for model in models.models
            if model.kind != "sentence-encoder"
        )


SIGLIP = {
    "google/siglip2-base-patch16-224": ({}, {}),
    "google/siglip2-base-patch16-256": ({}, {"image_size": 256}),
    "google/siglip2-so400m-patch14-384": (
        so400m := {
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
        },
        so400m | {"patch_size": 14, "image_size": 384},
    ),
}


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", SIGLIP)
def test_the_number_of_weights_of_frame_encoders(name: str) -> None:
    """transformers' own model of these numbers has as many; no weight is made."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text, vision = SIGLIP[name]
    model, width = ALTERNATIVES[name], text.get("hidden_size", 768)
    words = {"vocab_size": model.words, "projection_size": width}
    config = transformers.SiglipConfig(text_config=text | words, vision_config=vision)
    with torch.device("meta"):
        parameters = transformers.SiglipModel(config).parameters()
        assert sum(one.numel() for one in parameters) == model.parameters
    assert (model.width, model.download) == (width, 4 * model.parameters)


@pytest.mark.parametrize(
    ("name", "wide", "layers"),
    [
        ("ibm-granite/granite-embedding-small-english-r2", 1536, 12),
        ("Alibaba-NLP/gte-modernbert-base", 1152, 22),
    ],
)
def test_the_number_of_weights_of_modernbert(name: str, wide: int, layers: int) -> None:
    """It has no biases, and its first layer has one norm."""
    model = ALTERNATIVES[name]
    width = model.width
    layer = 4 * width**2 + 3 * width * wide
    count = model.words * width + layers * layer + (2 * layers + 1) * width
    assert model.parameters == count and model.download == 2 * count
    assert disk_bytes(model, "fp32") == 8 * count and disk_bytes(model, "fp16") == 2 * count


@pytest.mark.needs_torch
def test_the_number_of_weights_of_decoder_encoders() -> None:
    """As above, with the numbers of the published settings."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    qwen, gemma = (
        ALTERNATIVES[name] for name in ("Qwen/Qwen3-Embedding-0.6B", "google/embeddinggemma-300m")
    )
    common = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8}
    config = transformers.Qwen3Config(vocab_size=qwen.words, **common, **heads)
    with torch.device("meta"):
        parameters = transformers.Qwen3Model(config).parameters()
        assert sum(one.numel() for one in parameters) == qwen.parameters
    common = {"hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 24}
    heads = {"num_attention_heads": 3, "num_key_value_heads": 1}
    config = transformers.Gemma3TextConfig(vocab_size=gemma.words, **common, **heads)
    with torch.device("meta"):
        parameters = transformers.Gemma3TextModel(config).parameters()
        # Two layers behind the pooling widen an embedding to 3072 values and narrow it again.
        assert sum(p.numel() for p in parameters) + 2 * 768 * 3072 == gemma.parameters
    assert (qwen.width, gemma.width) == (1024, 768)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_decoder_encoder_on_disk(tmp_path: Path, precision: str) -> None:
    """Its graphs share one file of weights; layers behind the pooling are small."""
    source = write_bare_decoder(tmp_path / "source", "qwen3-wide")
    out = export_sentence_encoder(source, tmp_path / "out", precision=precision, check=False)
    weights = sum(array.size for array in load_file(source / "model.safetensors").values())
    model = replace(ALTERNATIVES["Qwen/Qwen3-Embedding-0.6B"], parameters=weights)
    assert disk_bytes(model, precision) == pytest.approx(size_of(out), rel=0.02)


def test_alternatives_are_pinned() -> None:
    assert {model.kind for model in ALTERNATIVES.values()} <= set(KINDS)
    for model in ALTERNATIVES.values():
        assert len(model.revision) == 40 and model.licence and model.read_in
        assert 1.99 < model.download / model.parameters < 4.01


def test_sets_are_pinned_and_exportable() -> None:
    for models in MODEL_SETS.values():
        assert tuple(model.kind for model in models.models) in (KINDS,)
        for model in models.models:
            assert len(model.revision) == 40 and model.licence and model.read_in
            assert (model.decoder is None) == (model.kind in ("sentence-encoder", "clip"))
            assert (model.tower is None) == (model.kind != "vlm")
            # The published file has these weights in 2 or 4 bytes, some of them twice.
            assert 1.99 < model.download / model.parameters < 4.01
    gated = {n for n, s in MODEL_SETS.items() if any(m.gated for m in s.models)}
    assert gated == {"paper"}
