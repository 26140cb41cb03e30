"""Write folders of tiny SmolVLM2s with random weights, as the hub has them; spoil their graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer

from granalign_fast.export.graphs.smolvlm_tower import SmolVlmVisionGraph
from helpers.tiny_bert import write_json
from helpers.tiny_llm import _weights as decoder_weights
from helpers.tiny_llm import write_tokenizer
from helpers.tiny_vlm import write_unchecked_vlm

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<global-img>",
    "<row_1_col_1>",
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2, 3) if row + column > 2),
]
"""The published tokenizers have tokens for tiles up to row 6 and column 6, these up to 2 and 3."""
VOCABULARY, CONTEXT = 320, 512
PAD, START, EOS, GLOBAL, ROW, FAKE, IMAGE, END = range(256, 256 + 8)

# With the syntax of the family's own template: contents are lists of parts, of which the first
# decides whether a space follows the name of the role.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{% if message['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'image' %}{{ '<image>' }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

VISION: dict[str, Any] = {
    "model_type": "smolvlm_vision",
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 4,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
TEXT: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["VLlama3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100.0,  # low, so that every pair of a head rotates fast enough to matter
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": START,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}
_WHOLE: dict[str, Any] = {
    "architectures": ["SmolVLMForConditionalGeneration"],
    "model_type": "smolvlm",
    "image_token_id": IMAGE,
    "pad_token_id": PAD,
    "use_cache": True,
}
_TIED = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "tie_word_embeddings": True,
}

CONFIGS: dict[str, dict[str, Any]] = {
    # The shape of the published model of 500 M: 15 heads on 5, 4 x 4 patches to a token.
    "untied-gqa-4": _WHOLE
    | {
        "tie_word_embeddings": False,
        "scale_factor": 4,
        "text_config": TEXT,
        "vision_config": VISION,
    },
    # Of 2.2 B: 3 x 3 patches, and pixels beyond the last whole patch. 4 heads on 4, tied.
    "tied-mha-3": _WHOLE
    | {
        "tie_word_embeddings": True,
        "scale_factor": 3,
        "text_config": TEXT | _TIED,
        "vision_config": VISION | {"image_size": 40, "patch_size": 6, "num_hidden_layers": 2},
    },
    "tied-gqa-2": _WHOLE
    | {
        "tie_word_embeddings": True,
        "scale_factor": 2,
        "text_config": TEXT | _TIED | {"num_key_value_heads": 2, "num_hidden_layers": 2},
        "vision_config": VISION
        | {"image_size": 30, "patch_size": 5, "hidden_size": 36, "num_attention_heads": 2},
    },
}
"""By name. In the published folders the decoder's settings name an architecture of its own."""

PREPROCESSOR: dict[str, Any] = {
    "image_processor_type": "SmolVLMImageProcessor",
    "processor_class": "SmolVLMProcessor",
    "do_convert_rgb": True,
    "do_image_splitting": True,
    "do_normalize": True,
    "do_pad": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 1,
    "rescale_factor": 1 / 255,
    "video_sampling": {"fps": 1, "max_frames": 64},
}


def side_of(config: dict[str, Any]) -> int:
    """Return the edge of an image in pixels."""
    return int(config["vision_config"]["image_size"])


def tokens_of(config: dict[str, Any]) -> int:
    """Return how many tokens an image has."""
    vision = config["vision_config"]
    return int((vision["image_size"] // vision["patch_size"] // config["scale_factor"]) ** 2)


def write_tiny_smolvlm(
    folder: Path, config: dict[str, Any] | None = None, *, seed: int = 0, spread: float = 0.2
) -> Path:
    """Write the folder and return it; arguments as of `tiny_vlm.write_tiny_vlm`."""
    config = CONFIGS["untied-gqa-4"] if config is None else config
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"eos_token_id": [EOS, END], "pad_token_id": PAD})
    edge = side_of(config)
    sizes = {"size": {"longest_edge": 4 * edge}, "max_image_size": {"longest_edge": edge}}
    video = {
        "video_sampling": PREPROCESSOR["video_sampling"] | {"video_size": sizes["max_image_size"]}
    }
    write_json(folder / "preprocessor_config.json", PREPROCESSOR | sizes | video)
    settings = {"image_seq_len": tokens_of(config), "processor_class": "SmolVLMProcessor"}
    write_json(folder / "processor_config.json", settings)
    random = np.random.default_rng(seed)
    decoder = decoder_weights(config["text_config"], random, spread)
    weights = {
        name.replace("model.", "model.text_model.", 1): array for name, array in decoder.items()
    }
    weights |= _vision_weights(config, random, spread)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    named = {"fake_image_token": FAKE, "image_token": IMAGE, "global_image_token": GLOBAL}
    extra = {name: SPECIAL[token - PAD] for name, token in named.items()}
    extra["end_of_utterance_token"] = SPECIAL[END - PAD]
    write_tokenizer(
        folder,
        SPECIAL,
        {
            "eos_token": SPECIAL[EOS - PAD],
            "pad_token": SPECIAL[0],
            "extra_special_tokens": extra,
            "processor_class": "SmolVLMProcessor",
        },
    )
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    # Recognition reads answers that are one token.
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in ("yes", "no")])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_unchecked_smolvlm(
    folder: Path,
    config: dict[str, Any] | None = None,
    *,
    precision: str = "fp32",
    image_size: tuple[int, int] | None = None,
) -> Path:
    """Export a tiny model without the comparison with torch; see `write_unchecked_vlm`."""
    if not (folder / "source").exists():
        write_tiny_smolvlm(folder / "source", config)
    return write_unchecked_vlm(folder, precision=precision, image_size=image_size)


def _vision_weights(
    config: dict[str, Any], random: np.random.Generator, spread: float
) -> dict[str, np.ndarray[Any, Any]]:
    vision = config["vision_config"]
    hidden, wide = vision["hidden_size"], vision["intermediate_size"]
    edge, tower = vision["patch_size"], "model.vision_model"
    weights: dict[str, np.ndarray[Any, Any]] = {}

    def put(name: str, *shape: int, scale: float = spread) -> None:
        weights[name] = (scale * random.standard_normal(shape)).astype(np.float32)

    def linear(name: str, rows: int, columns: int) -> None:
        put(f"{name}.weight", rows, columns)
        put(f"{name}.bias", rows)

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = random.uniform(0.5, 1.5, hidden).astype(np.float32)
        put(f"{name}.bias", hidden)

    put(f"{tower}.embeddings.patch_embedding.weight", hidden, 3, edge, edge)
    put(f"{tower}.embeddings.patch_embedding.bias", hidden)
    patches = (vision["image_size"] // edge) ** 2
    put(f"{tower}.embeddings.position_embedding.weight", patches, hidden, scale=1.0)
    for layer in range(vision["num_hidden_layers"]):
        block = f"{tower}.encoder.layers.{layer}"
        norm(f"{block}.layer_norm1")
        norm(f"{block}.layer_norm2")
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            linear(f"{block}.self_attn.{part}", hidden, hidden)
        linear(f"{block}.mlp.fc1", wide, hidden)
        linear(f"{block}.mlp.fc2", hidden, wide)
    norm(f"{tower}.post_layernorm")
    rows, columns = config["text_config"]["hidden_size"], hidden * config["scale_factor"] ** 2
    put("model.connector.modality_projection.proj.weight", rows, columns, scale=spread / 4)
    return weights


def frames_of(count: int, side: int, *, seed: int = 2) -> np.ndarray[Any, Any]:
    """Return uint8 frames (count, side, side, 3) of coarse blocks with fine noise."""
    random = np.random.default_rng(seed)
    cells = -(-side // 8)
    blocks = random.integers(0, 192, (count, cells, cells, 3))
    coarse = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :side, :side]
    return (coarse + random.integers(0, 64, coarse.shape)).astype(np.uint8)


def transpose_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs join the patches of a token column by column, where they go row by row."""
    op = SmolVlmVisionGraph._op

    def other(self: Any, kind: str, *inputs: str, **attributes: Any) -> str:
        if attributes.get("perm") == [0, 1, 3, 2, 4]:
            attributes["perm"] = [0, 3, 1, 2, 4]
        return op(self, kind, *inputs, **attributes)

    monkeypatch.setattr(SmolVlmVisionGraph, "_op", other)


def shift_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs give every patch the position of its neighbour."""
    read = SmolVlmVisionGraph._read_float64

    def other(self: Any, name: str, *size: int) -> Any:
        array = read(self, name, *size)
        return np.roll(array, 1, axis=0) if "position_embedding" in name else array

    monkeypatch.setattr(SmolVlmVisionGraph, "_read_float64", other)
