"""A tiny SigLIP 2 as transformers saves it: SigLIP's towers with the tokenizer of Gemma."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from helpers.tiny_bert import edit_json

SIDE, LENGTH = 32, 64

SIZES: dict[str, dict[str, Any]] = {
    "base-patch16-224": {"vision": {"image_size": 224, "patch_size": 16}},
    "base-patch16-256": {
        "text": {"hidden_size": 48, "num_attention_heads": 4, "projection_size": 64},
        "vision": {"image_size": 256, "patch_size": 16, "hidden_size": 64},
    },
    # 27 x 27 patches; 6 rows and columns of pixels are in no patch. Heads of 36 values, and an MLP
    # that is not a multiple of 8: as so400m has 72 values a head, and 4304 in its MLP.
    "so400m-patch14-384": {
        "text": {"hidden_size": 72, "intermediate_size": 269, "projection_size": 72},
        "vision": {
            "image_size": 384,
            "patch_size": 14,
            "hidden_size": 72,
            "intermediate_size": 269,
        },
    },
    # As the giant: the image tower is the wider one, so the text's head widens.
    "giant-patch16-384": {
        "text": {"hidden_size": 32, "num_hidden_layers": 3, "projection_size": 96},
        "vision": {
            "image_size": 384,
            "patch_size": 16,
            "hidden_size": 96,
            "num_attention_heads": 6,
            "num_hidden_layers": 1,
        },
    },
}
"""What differs from the tiny model, by the published sizes whose form they have."""


def gemma_tokenizer() -> Tokenizer:
    """Return a tokenizer with the steps of Gemma's and a small vocabulary of cased letters."""
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁"]
    pieces += [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [*string.ascii_letters, *string.digits, *"éè.,'", "th", "the", "▁the", "Th", "The"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[("t", "h"), ("th", "e"), ("▁", "the"), ("T", "h"), ("Th", "e")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return tokenizer


def write_published_siglip2(folder: Path, size: str | None = None) -> Path:
    """Write the folder with the tokenizer's settings of the published models, and return it.

    Args:
        folder: must not exist.
        size: one of `SIZES`; None for the smallest.
    """
    import transformers

    tokenizer = gemma_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    write_siglip2(folder, fast, **SIZES.get(size or "", {}))
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="GemmaTokenizer",
        add_bos_token=False,
        add_eos_token=True,
        padding_side="right",
    )
    return folder


def write_siglip2(
    folder: Path,
    tokenizer: Any,
    *,
    text: dict[str, Any] | None = None,
    vision: dict[str, Any] | None = None,
) -> Path:
    """Write the folder with a transformers tokenizer, and return it.

    Args:
        folder: must not exist.
        tokenizer: of transformers.
        text: settings of the text tower that differ from the tiny model's.
        vision: those of the image tower.
    """
    import torch
    import transformers

    folder.mkdir(parents=True)
    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    words = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "projection_size": 32,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    pixels = {"image_size": SIDE, "patch_size": 16} | (vision or {})
    config = transformers.SiglipConfig(
        text_config=common | words | (text or {}), vision_config=common | pixels
    )
    side = pixels["image_size"]
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    image = transformers.SiglipImageProcessor(size={"height": side, "width": side})
    model.save_pretrained(folder)
    transformers.SiglipProcessor(image, tokenizer).save_pretrained(folder)
    return folder
