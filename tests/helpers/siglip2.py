"""A tiny SigLIP 2 as transformers saves it: SigLIP's towers with the tokenizer of Gemma."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

SIDE, LENGTH = 32, 64


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


def write_siglip2(folder: Path, tokenizer: Any) -> Path:
    """Write the folder with a transformers tokenizer, and return it."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    common = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = common | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTH,
        "projection_size": 32,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    config = transformers.SiglipConfig(
        text_config=text, vision_config=common | {"image_size": SIDE, "patch_size": 16}
    )
    torch.manual_seed(0)
    model = transformers.SiglipModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    image = transformers.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    model.save_pretrained(folder)
    transformers.SiglipProcessor(image, tokenizer).save_pretrained(folder)
    return folder
