"""Write tiny CLIPs and SigLIPs: source models with transformers, and exports without torch."""

from __future__ import annotations

import string
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from granalign_fast.export.graphs.clip_shapes import ImageShape, Levels, TextShape, Transformer
from granalign_fast.export.graphs.clip_towers import write_towers
from granalign_fast.export.sources.checkpoint import MemoryTensors
from granalign_fast.files import sha256_of
from granalign_fast.models.frame_encoder import Preprocessing
from granalign_fast.models.manifest import FrameEncoderManifest
from helpers.tiny_bert import write_json

PREPROCESSING = Preprocessing(resize=(10,), crop=(8, 8), resample=3)
LEVELS = Levels(rescale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.1))
DIM, MAX_TOKENS = 6, 12

# Landscape, portrait, odd, square, one or two edges shorter than the crop, one pixel wide.
SIZES = [(90, 160), (160, 90), (61, 47), (33, 101), (32, 32), (17, 200), (9, 7), (50, 1)]

# Two configurations of each family. They differ in every size, in the token at which CLIP pools a
# text (the one with the highest id, or `eos_token_id`), in SigLIP's padding token, and in the
# preprocessing of frames.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "clip-highest-id": {
        "family": "clip",
        "text": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4},
        "vision": {"hidden_size": 48, "num_hidden_layers": 3, "image_size": 32, "patch_size": 8},
        "length": 16,
        "eos_token_id": 2,
        "image": {"size": {"shortest_edge": 32}, "crop_size": 32},
    },
    "clip-given-id": {
        "family": "clip",
        "text": {"hidden_size": 24, "num_hidden_layers": 3, "hidden_act": "gelu"},
        "vision": {"hidden_size": 32, "image_size": 30, "patch_size": 10, "hidden_act": "gelu"},
        "length": 24,
        "eos_token_id": None,
        "image": {"size": {"shortest_edge": 37}, "crop_size": 30, "resample": 2},
    },
    "siglip-eos-pads": {
        "family": "siglip",
        "text": {"hidden_size": 32, "num_attention_heads": 4, "projection_size": 32},
        "vision": {"hidden_size": 32, "image_size": 32, "patch_size": 16},
        "length": 64,
        "pad_token": "</s>",
        "image": {"size": {"height": 32, "width": 32}},
    },
    "siglip-pad-pads": {
        "family": "siglip",
        "text": {"hidden_size": 24, "num_hidden_layers": 3, "projection_size": 48},
        "vision": {"hidden_size": 48, "image_size": 28, "patch_size": 7},
        "length": 20,
        "pad_token": "<pad>",
        "image": {"size": {"height": 28, "width": 28}, "image_mean": [0.4, 0.5, 0.6]},
    },
}


def random_frames(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """Return a frame of noise for each size, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]


def write_tiny_clip(folder: Path, name: str) -> Path:
    """Write one of `CONFIGURATIONS` as transformers saves it, and return the folder."""
    import torch
    import transformers

    settings = CONFIGURATIONS[name]
    family, length = settings["family"], settings["length"]
    folder.mkdir(parents=True)
    if family == "clip":
        tokenizer = _clip_tokenizer(folder, length)
        eos = settings["eos_token_id"] or tokenizer.eos_token_id
        kinds = (transformers.CLIPConfig, transformers.CLIPModel, transformers.CLIPImageProcessor)
        extra = {"projection_dim": 20}
    else:
        tokenizer = _siglip_tokenizer(length, settings["pad_token"])
        eos = tokenizer.eos_token_id
        kinds = (
            transformers.SiglipConfig,
            transformers.SiglipModel,
            transformers.SiglipImageProcessor,
        )
        extra = {}
    common = {"intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": eos,
        "pad_token_id": tokenizer.pad_token_id,
    }
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": length}
    config = kinds[0](
        text_config=common | sizes | special | settings["text"],
        vision_config=common | settings["vision"],
        **extra,
    )
    torch.manual_seed(sorted(CONFIGURATIONS).index(name))
    model = kinds[1](config)
    with torch.no_grad():
        # Wider than the usual initialisation, so that different inputs give different embeddings.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder)
    if name == "clip-highest-id":
        # Old published CLIPs also hold ranges of integers, which exports must ignore.
        path = folder / "model.safetensors"
        position_ids = {"text_model.embeddings.position_ids": np.arange(length)[None]}
        save_file(load_file(path) | position_ids, path, {"format": "pt"})
    tokenizer.save_pretrained(folder)
    kinds[2](**settings["image"]).save_pretrained(folder)
    return folder


def _clip_tokenizer(folder: Path, length: int) -> Any:
    from transformers import CLIPTokenizerFast
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>"]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    merges = "#version: 0.2\nt h\nth e</w>\n"
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return CLIPTokenizerFast(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length
    )


def _siglip_tokenizer(length: int, pad_token: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    pieces = ["<pad>", "</s>", "<unk>", "▁", *string.ascii_lowercase, "▁the", "."]
    tokenizer = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 2))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=length,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token=pad_token,
    )


def write_bare_source(folder: Path) -> Path:
    """Write a folder that looks like CLIP until transformers opens it; needs no torch."""
    folder.mkdir(parents=True)
    write_json(folder / "config.json", {"model_type": "clip"})
    write_json(folder / "preprocessor_config.json", {})
    save_file({"weight": np.zeros(3, np.float32)}, folder / "model.safetensors")
    _letters().save(str(folder / "tokenizer.json"))
    return folder


WORDS = 40
"""Vocabulary of `random_clip`; the last token id ends a text."""


SIGLIP2_WIDTHS = {"base": (128, 192, 128), "so400m": (144, 538, 144), "giant": (128, 192, 64)}
"""Width of the image tower, of the layers' perceptrons and of the text tower, each in a form that a
published SigLIP 2 has: so400m has heads of 72 values and a perceptron that is no multiple of 8, and
the giant's text tower is narrower than its image tower."""


def random_clip(
    family: str,
    *,
    layers: int = 2,
    end: int = WORDS - 1,
    widths: tuple[int, int, int] = SIGLIP2_WIDTHS["base"],
) -> tuple[Any, Any, Any]:
    """Return the shapes of an image and a text tower, and random weights of both, without torch.

    An image has 5 x 5 patches of 7 pixels, and 2 further rows and columns in no patch.

    Args:
        family: ``"clip"`` or ``"siglip"``.
        layers: of each tower.
        end: id of the token that ends a text.
        widths: as in `SIGLIP2_WIDTHS`; a CLIP's towers are equally wide here.
    """
    activation = {"clip": "quick_gelu", "siglip": "gelu_pytorch_tanh"}[family]
    hidden, wide, of_text = widths
    stack = Transformer(hidden, wide, layers, 2, activation, 1e-5)
    out = 48 if family == "clip" else hidden
    image = ImageShape(stack, 37, 7, out, LEVELS)
    text = TextShape(replace(stack, hidden=of_text), WORDS, MAX_TOKENS, out, end)
    rng = np.random.default_rng(0)
    patches = image.grid**2
    sizes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.patch_embedding.weight": (hidden, 3, 7, 7),
        "vision_model.embeddings.position_embedding.weight": (patches + (family == "clip"), hidden),
        "text_model.embeddings.token_embedding.weight": (WORDS, of_text),
        "text_model.embeddings.position_embedding.weight": (MAX_TOKENS, of_text),
    }

    def linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def mlp(name: str, width: int) -> dict[str, tuple[int, ...]]:
        return linear(f"{name}.fc1", width, wide) | linear(f"{name}.fc2", wide, width)

    norms = {"vision_model.post_layernorm": hidden, "text_model.final_layer_norm": of_text}
    for tower, width in (("vision_model", hidden), ("text_model", of_text)):
        for layer in range(layers):
            prefix = f"{tower}.encoder.layers.{layer}"
            for part in ("q", "k", "v", "out"):
                sizes |= linear(f"{prefix}.self_attn.{part}_proj", width, width)
            sizes |= mlp(f"{prefix}.mlp", width)
            norms |= {f"{prefix}.layer_norm1": width, f"{prefix}.layer_norm2": width}
    if family == "clip":
        norms["vision_model.pre_layrnorm"] = hidden
        sizes["vision_model.embeddings.class_embedding"] = (hidden,)
        sizes |= {f"{name}_projection.weight": (out, hidden) for name in ("visual", "text")}
    else:
        head = "vision_model.head"
        norms[f"{head}.layernorm"] = hidden
        sizes["vision_model.embeddings.patch_embedding.bias"] = (hidden,)
        sizes |= linear("text_model.head", of_text, out) | mlp(f"{head}.mlp", hidden)
        sizes[f"{head}.probe"] = (1, 1, hidden)
        sizes |= linear(f"{head}.attention.out_proj", hidden, hidden)
        sizes[f"{head}.attention.in_proj_weight"] = (3 * hidden, hidden)
        sizes[f"{head}.attention.in_proj_bias"] = (3 * hidden,)
    for norm, width in norms.items():
        sizes |= {f"{norm}.{part}": (width,) for part in ("weight", "bias")}

    def draw(name: str, size: tuple[int, ...]) -> Any:
        fan = int(np.prod(size[1:])) if len(size) > 1 else 4
        # Large token embeddings and sharp attention, so that different inputs give different
        # embeddings.
        scale = 8 if "token" in name else 3 if "q_proj" in name or "v_proj" in name else 1
        return (scale * rng.standard_normal(size) / fan**0.5).astype(np.float32)

    return image, text, {name: draw(name, size) for name, size in sizes.items()}


def write_clip_source(folder: Path, family: str, *, layers: int = 2) -> Path:
    """Write `random_clip` as transformers would save it, without torch; return the folder."""
    image, text, weights = random_clip(family, layers=layers)
    folder.mkdir(parents=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    stack = {
        "hidden_size": image.layers.hidden,
        "intermediate_size": image.layers.wide,
        "num_hidden_layers": layers,
        "num_attention_heads": image.layers.heads,
        "hidden_act": image.layers.activation,
        "layer_norm_eps": image.layers.epsilon,
    }
    of_text = {"vocab_size": WORDS, "max_position_embeddings": MAX_TOKENS, "eos_token_id": text.end}
    config = {
        "model_type": family,
        "vision_config": stack | {"image_size": image.side, "patch_size": image.patch},
        "text_config": stack | of_text,
        "projection_dim": image.out,
    }
    write_json(folder / "config.json", config)
    size: dict[str, Any] = {"size": {"height": image.side, "width": image.side}}
    if family == "clip":
        size = {"size": {"shortest_edge": 40}, "crop_size": image.side}
    levels = {"image_mean": list(LEVELS.mean), "image_std": list(LEVELS.std)}
    kind = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor"}[family]
    settings = {"image_processor_type": kind} | size | levels
    write_json(folder / "preprocessor_config.json", settings)
    tokenizer = _letters()
    tokenizer.add_tokens([f"<{i}>" for i in range(tokenizer.get_vocab_size(), WORDS - 1)])
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", WORDS - 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"pad_token": "<end>"})
    return folder


def write_random_clip(folder: Path, family: str, *, precision: str, **changes: Any) -> Path:
    """Write the graphs of `random_clip` as they are exported, without the export's other files."""
    *shapes, weights = random_clip(family, **changes)
    folder.mkdir(parents=True)
    write_towers(folder, family, shapes, MemoryTensors(weights), precision)
    return folder


def write_tiny_export(folder: Path, **changes: Any) -> Path:
    """Write an export with two linear towers; `changes` replace fields of the manifest.

    The image tower multiplies all bytes by a matrix. The text tower sums its tokens' vectors.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, columns = PREPROCESSING.crop
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["batch", rows, columns, 3])
    weight = rng.normal(size=(3 * rows * columns, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Cast", ["frames"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["numbers"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["sum"]),
    ]
    _save_tower(folder / "image.onnx", nodes, frames, {"weight": weight})

    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "sequence"])
    table = rng.normal(size=(len(string.ascii_lowercase) + 1, DIM)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("ReduceSum", ["vectors", "axis"], ["sum"], keepdims=0),
    ]
    _save_tower(folder / "text.onnx", nodes, ids, {"table": table, "axis": np.array([1])})

    tokenizer = _letters()
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.save(str(folder / "tokenizer.json"))
    values: dict[str, Any] = {
        "source": "tiny",
        "weights_sha256": "0" * 64,
        "source_sha256": "1" * 64,
        "files": {path.name: sha256_of(path) for path in folder.iterdir()},
        "precision": "fp32",
        "dim": DIM,
        "max_tokens": MAX_TOKENS,
        "preprocessing": asdict(PREPROCESSING),
        "tools": {},
        "validation": {"unchecked": 0.0},
    }
    FrameEncoderManifest(**values | changes).write(folder)
    return folder


def _letters() -> Tokenizer:
    tokens = ["?", *string.ascii_lowercase]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def _save_tower(path: Path, nodes: list[Any], inputs: Any, weights: dict[str, Any]) -> None:
    embeddings = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", DIM])
    nodes.append(helper.make_node("LpNormalization", ["sum"], ["embeddings"], axis=-1, p=2))
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, path.stem, [inputs], [embeddings], constants)
    opset = helper.make_opsetid("", 18)
    save(helper.make_model(graph, ir_version=8, opset_imports=[opset]), path)
