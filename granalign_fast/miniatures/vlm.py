"""The miniature Qwen2.5-VL: its sizes, prompts, and image tower on batches of equal frames."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.language import prompts
from granalign_fast.models.image_layout import ImageLayout, still_image

from . import pool, scenes, training, wordlevel
from .drawing import SIDE

PATCH, MERGE = 14, 2
GRID = SIDE // PATCH // MERGE
TOKENS = GRID**2
"""Image tokens of a frame: 16, in 4 rows."""

THETA = 10000.0
"""Base of the image tower's rotary positions, which no setting changes."""

# Qwen's means and standard deviations of pixels, those of CLIP.
MEAN = np.array((0.48145466, 0.4578275, 0.40821073), np.float32)
STD = np.array((0.26862954, 0.26130258, 0.27577711), np.float32)


def build(
    seed: int,
    tokenizer: Any = None,
    *,
    width: int = 128,
    sections: tuple[int, int, int] = (4, 6, 6),
    threads: int = training.THREADS,
) -> Any:
    """Build an untrained ``Qwen2_5_VLForConditionalGeneration`` with four layers in both parts.

    Args:
        seed: seed of the weights.
        tokenizer: its tokenizer; None for `wordlevel.vlm_tokenizer`.
        width: values of a token, in the image tower and in the language model. With 128 the model
            has two million parameters.
        sections: pairs of a head's values that turn by time, by row and by column.
        threads: threads of torch.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    training.seed_torch(seed, threads)
    ids = (tokenizer or wordlevel.vlm_tokenizer()).get_vocab()
    depth = 4
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(ids),
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": depth,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            # Rows and columns run to 3, not to 100: only fast rotations distinguish them.
            "rope_theta": 10.0,
            "rope_scaling": {"type": "mrope", "mrope_section": [*sections]},
            "use_sliding_window": False,
            "tie_word_embeddings": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
            # Four windows a frame, so that errors in reordering them show.
            "window_size": SIDE // 2,
            "fullatt_block_indexes": [2, 3],
            "out_hidden_size": width,
            "in_channels": 3,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    training.initialise(
        model,
        depth,
        seed,
        inputs=("embed_tokens.weight",),
        outputs=("o_proj.weight", "down_proj.weight", "attn.proj.weight"),
    )
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<|endoftext|>"]
    return model


def image_processor() -> Any:
    """Return the ``Qwen2VLImageProcessor`` that makes 16 tokens of a square frame."""
    from transformers import Qwen2VLImageProcessor

    pixels = SIDE * SIDE
    return Qwen2VLImageProcessor(
        min_pixels=pixels, max_pixels=pixels, patch_size=PATCH, merge_size=MERGE
    )


def patches(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Normalise frames, (n, 112, 112, 3), and cut patches as the processor does.

    Returns:
        (n, 64, 3 x 2 x 14 x 14); the two temporal slices are equal for a still image.
    """
    return pair_patches(np.repeat(frames[:, None], 2, axis=1))


def pair_patches(pairs: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Normalise pairs of frames, (n, 2, 112, 112, 3), and cut patches of both frames of a pair.

    Returns:
        (n, 64, 3 x 2 x 14 x 14).
    """
    pixels = (pairs / np.float32(255) - MEAN) / STD
    shape = (len(pairs), 2, GRID, MERGE, PATCH, GRID, MERGE, PATCH, 3)
    ordered = pixels.reshape(shape).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return np.ascontiguousarray(ordered.reshape(len(pairs), TOKENS * MERGE**2, -1), np.float32)


def label_ids() -> list[int | None]:
    """Return the token of each label's word, in the order of `pool.LABELS`; None without a word."""
    vocabulary = wordlevel.vlm_tokenizer().get_vocab()
    return [
        None if word is None else vocabulary[word] for words in pool.LABEL_WORDS for word in words
    ]


class ImageTower:
    """Runs the layers of transformers' image tower on many frames at once.

    transformers runs one window after another; equal frames allow one product for all windows.
    """

    def __init__(self, model: Any) -> None:
        import torch

        self.tower = model.model.visual
        # Tokens in the order of their windows, of which a frame has whole ones.
        window = self.tower.config.window_size // MERGE // PATCH
        split = (GRID // window, window, GRID // window, window)
        self.windows = (GRID // window) ** 2
        self.order = torch.arange(TOKENS).view(split).transpose(1, 2).flatten()
        self.back = torch.argsort(self.order)
        # Half of a head's rotary pairs follow the row of a patch, half its column.
        side = GRID * MERGE
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        places = torch.stack([rows, columns], -1).view(GRID, MERGE, GRID, MERGE, 2)
        places = places.transpose(1, 2).reshape(TOKENS, MERGE**2, 2)[self.order]
        size = self.tower.config.hidden_size // self.tower.config.num_heads // 2
        speeds = THETA ** -(torch.arange(0, size, 2) / size)
        angles = (places[..., None] * speeds).reshape(TOKENS * MERGE**2, 1, -1)
        both = torch.cat((angles, angles), -1)
        self.cos, self.sin = both.cos(), both.sin()

    def __call__(self, pixels: Any) -> Any:
        """Embed patches, (n, 64, 1176); return (n, 16, width)."""
        from torch.nn import functional

        n, length, _ = pixels.shape
        # The convolution's kernel is as wide as its stride: a product is several times faster.
        kernel = self.tower.patch_embed.proj.weight.flatten(1)
        x = functional.linear(pixels, kernel).view(n, TOKENS, MERGE**2, -1)
        x = x[:, self.order].reshape(n, length, -1)
        for number, block in enumerate(self.tower.blocks):
            parts = 1 if number in self.tower.fullatt_block_indexes else self.windows
            qkv = block.attn.qkv(block.norm1(x)).view(n, length, 3, block.attn.num_heads, -1)
            q, k, v = qkv.unbind(2)
            q, k, v = (
                part.reshape(n * parts, length // parts, *part.shape[2:]).transpose(1, 2)
                for part in (self._turned(q), self._turned(k), v)
            )
            seen = functional.scaled_dot_product_attention(q, k, v)
            x = x + block.attn.proj(seen.transpose(1, 2).reshape(n, length, -1))
            x = x + block.mlp(block.norm2(x))
        merged = self.tower.merger(x.reshape(n * length, -1)).view(n, TOKENS, -1)
        return merged[:, self.back]

    def _turned(self, x: Any) -> Any:
        import torch

        one, other = x.chunk(2, -1)
        return x * self.cos + torch.cat((-other, one), -1) * self.sin


class Prompts:
    """Token ids of the product's prompts, split into common and particular parts.

    Args:
        tokenizer: None for `wordlevel.vlm_tokenizer`.
        layout: how a prompt holds what it is about; None for a frame.
    """

    def __init__(self, tokenizer: Any = None, layout: ImageLayout | None = None) -> None:
        self.tokenizer = tokenizer or wordlevel.vlm_tokenizer()
        image = self.tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.layout = layout or still_image(image, (GRID, GRID))
        (self.image_id,) = self.layout.placeholder
        frames = self.layout.frames
        caption = self._whole(prompts.agnostic_caption(frames))
        self.before = caption[: caption.index(self.image_id)]
        # The beginning of every prompt, up to the placeholder and the end of the image.
        self.start = self.layout.expand(caption[: len(self.before) + 2])
        self.root = len(self.start.ids)
        self.first = self.start.next_position
        """Position of the first token after the image: a frame takes as many positions as rows."""
        self.heads = [
            self.suffix(prompts.agnostic_caption(frames)),
            self._common(*(prompts.aware_caption([x], frames) for x in ("red", "blue"))),
            self._common(*(prompts.recognition(x, frames) for x in ("red", "blue"))),
        ]

    @cached_property
    def article(self) -> int:
        """Token id of ``a``."""
        token: int = self.tokenizer.convert_tokens_to_ids("a")
        return token

    @cached_property
    def sign_words(self) -> frozenset[int]:
        """Token ids of the signs' words."""
        return frozenset(self.tokenizer.convert_tokens_to_ids(list(scenes.WORDS)))

    def suffix(self, prompt: str) -> list[int]:
        """Return the token ids of a prompt after the image."""
        ids = self._whole(prompt)
        return ids[ids.index(self.image_id) + 2 :]

    def answer(self, text: str) -> list[int]:
        """Return the token ids of an answer and its end token."""
        ids: list[int] = self.tokenizer.encode(f"{text}<|im_end|>", add_special_tokens=False)
        return ids

    def _whole(self, prompt: str) -> list[int]:
        messages = prompts.about_clip(prompt, self.layout.frames, self.layout.content)
        ids: list[int] = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return ids

    def _common(self, one: str, other: str) -> list[int]:
        same = []
        for a, b in zip(self.suffix(one), self.suffix(other), strict=False):
            if a != b:
                break
            same.append(a)
        return same
