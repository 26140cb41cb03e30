"""How transformers runs each family of vision-language models: what an export is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from granalign_fast.export.sources.checkpoint import Float32
from granalign_fast.export.sources.families.smolvlm import image_text
from granalign_fast.models.graph_contract import DEEPSTACK, IMAGE_EMBEDS
from granalign_fast.models.image_layout import ImageLayout

from .transformers_calls import image_tokens, pooled

Frames = Sequence[npt.NDArray[np.uint8]]


class VlmPeer(Protocol):
    """The calls by which a family's model in transformers is run; models are in float32."""

    def prepare(self, model: Any) -> None:
        """Correct what transformers gets wrong."""

    def process(self, processor: Any, frames: Frames, *, tiles: bool) -> Mapping[str, Any]:
        """Return what the image processor makes of frames of the export's size.

        Args:
            processor: the image processor.
            frames: of the export's size.
            tiles: whether it cuts them into tiles.
        """

    def pixels(self, inputs: Mapping[str, Any]) -> Float32:
        """Return processed frames as `PATCHES_GRAPH` takes them, frames along the first axis."""

    def run_tower(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the outputs of the vision graphs as torch tensors, for processed frames."""

    def decoder(self, model: Any) -> Any:
        """Return the decoder, without its last product."""

    def towers(self, model: Any) -> list[Any]:
        """Return the modules of the vision tower whose products an int4 export rounds."""

    def arguments(self, model: Any, ids: Any, inputs: Mapping[str, Any], number: int) -> Any:
        """Return the arguments of the model for a prompt with one frame.

        Args:
            model: the model.
            ids: all tokens of the prompt, a torch tensor (1, tokens).
            inputs: from `process`.
            number: of the frame in these.
        """

    def clips(self, inputs: Mapping[str, Any], clips: int, span: int) -> dict[str, Any]:
        """Return the pixels of equally long clips as arguments of the model, a row a clip.

        Args:
            inputs: from `process`, the frames of all clips one after another.
            clips: number of clips.
            span: frames that an image of the tower spans.
        """

    def special(self, config: Any) -> tuple[list[int], list[int]]:
        """Return tokens that stand before and behind a frame, and those that no text may have."""

    def expand(self, text: str, tokenizer: Any, image: str, layout: ImageLayout) -> str:
        """Return a rendered prompt as the processor expands it.

        Args:
            text: the prompt.
            tokenizer: of the processor.
            image: the text of the image token.
            layout: how the prompt holds its frame, or its frames.
        """


class QwenPeer:
    """The families of Qwen-VL."""

    def prepare(self, model: Any) -> None:
        """Change nothing."""

    def process(self, processor: Any, frames: Frames, *, tiles: bool) -> Mapping[str, Any]:
        """Return ``pixel_values`` of all frames one after another, and their grids; no tiles."""
        inputs: Mapping[str, Any] = processor(
            images=list(frames), do_resize=False, return_tensors="pt"
        )
        return inputs

    def pixels(self, inputs: Mapping[str, Any]) -> Float32:
        """Return (frames, patches, values)."""
        pixels = inputs["pixel_values"].numpy()
        split: Float32 = pixels.reshape(len(inputs["image_grid_thw"]), -1, pixels.shape[-1])
        return split

    def run_tower(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return `IMAGE_EMBEDS` (images, tokens, hidden), and `DEEPSTACK` if the tower has any.

        `DEEPSTACK` is (images, layers, tokens, hidden). The images have equal sizes.
        """
        import torch

        tower, grids = model.model.visual, inputs["image_grid_thw"]
        output = tower(inputs["pixel_values"], grids)
        # Version 4.57 returns a tensor, or a pair of it and the features of deepstack.
        embeds, deepstack = output if isinstance(output, tuple) else (pooled(output), None)
        deepstack = getattr(output, "deepstack_features", deepstack)
        count, hidden = int(grids[:, 0].sum()), embeds.shape[-1]
        found = {IMAGE_EMBEDS: embeds.reshape(count, -1, hidden)}
        if deepstack:
            layers = [features.reshape(count, -1, hidden) for features in deepstack]
            found[DEEPSTACK] = torch.stack(layers, dim=1)
        return found

    def decoder(self, model: Any) -> Any:
        """Return the decoder."""
        return model.model.language_model

    def towers(self, model: Any) -> list[Any]:
        """Return the whole tower."""
        return [model.model.visual]

    def arguments(self, model: Any, ids: Any, inputs: Mapping[str, Any], number: int) -> Any:
        """Return the arguments for a prompt."""
        model.model.rope_deltas = None  # the model keeps those of the last prompt
        grids = inputs["image_grid_thw"]
        pixels = inputs["pixel_values"].reshape(len(grids), -1, inputs["pixel_values"].shape[-1])
        return {
            "input_ids": ids,
            "pixel_values": pixels[number],
            "image_grid_thw": grids[number : number + 1],
            **image_tokens(model, ids),
        }

    def clips(self, inputs: Mapping[str, Any], clips: int, span: int) -> dict[str, Any]:
        """Return single frames as images, and several as videos whose last frame is repeated."""
        grids = inputs["image_grid_thw"]
        frames = len(grids) // clips
        if frames == 1:
            return {"pixel_values": inputs["pixel_values"], "image_grid_thw": grids}
        times = -(-frames // span)
        shown = np.minimum(np.arange(times * span), frames - 1)
        numbers = (np.arange(clips)[:, None] * frames + shown).reshape(-1, span)
        videos = grids[:clips].clone()
        videos[:, 0] = times
        return {"pixel_values_videos": video_patches(inputs, numbers), "video_grid_thw": videos}

    def special(self, config: Any) -> tuple[list[int], list[int]]:
        """Return the tokens around a frame, and those of an image or a video."""
        ends = [config.vision_start_token_id, config.vision_end_token_id]
        return ends, [*ends, config.image_token_id, config.video_token_id]

    def expand(self, text: str, tokenizer: Any, image: str, layout: ImageLayout) -> str:
        """Repeat the image token."""
        return text.replace(image, image * layout.runs[0].tokens)


class SmolVlmPeer:
    """The family of SmolVLM2."""

    def prepare(self, model: Any) -> None:
        """Correct the positions of patches, which version 4.57 gets wrong in float32."""
        import transformers

        if int(transformers.__version__.split(".")[0]) < 5:
            correct_positions(model.model.vision_model)

    def process(self, processor: Any, frames: Frames, *, tiles: bool) -> Mapping[str, Any]:
        """Return ``pixel_values`` (frames, images, 3, side, side): a prompt for each frame."""
        inputs: Mapping[str, Any] = processor(
            [[frame] for frame in frames],
            do_resize=False,
            do_image_splitting=tiles,
            return_tensors="pt",
        )
        return inputs

    def pixels(self, inputs: Mapping[str, Any]) -> Float32:
        """Return (frames, 3, side, side)."""
        pixels: Float32 = inputs["pixel_values"].flatten(0, 1).numpy()
        return pixels

    def run_tower(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return `IMAGE_EMBEDS` (frames, tokens, hidden)."""
        pixels = inputs["pixel_values"].flatten(0, 1)
        states = model.model.vision_model(pixel_values=pixels).last_hidden_state
        return {IMAGE_EMBEDS: model.model.connector(states)}

    def decoder(self, model: Any) -> Any:
        """Return the decoder."""
        return model.model.text_model

    def towers(self, model: Any) -> list[Any]:
        """Return the layers, and the projection behind them."""
        return [model.model.vision_model.encoder, model.model.connector]

    def arguments(self, model: Any, ids: Any, inputs: Mapping[str, Any], number: int) -> Any:
        """Return the arguments for a prompt."""
        names = ("pixel_values", "pixel_attention_mask")
        return {"input_ids": ids} | {name: inputs[name][number : number + 1] for name in names}

    def clips(self, inputs: Mapping[str, Any], clips: int, span: int) -> dict[str, Any]:
        """Return the frames of each clip as its images."""
        names = ("pixel_values", "pixel_attention_mask")
        return {name: inputs[name].flatten(0, 1).unflatten(0, (clips, -1)) for name in names}

    def special(self, config: Any) -> tuple[list[int], list[int]]:
        """Return nothing around a frame, whose layout has all, and the image token."""
        return [], [config.image_token_id]

    def expand(self, text: str, tokenizer: Any, image: str, layout: ImageLayout) -> str:
        """Put an image, and its tiles if it has any, in the place of the image token."""
        fake = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        whole = getattr(tokenizer, "global_image_token", "<global-img>")
        word = image * layout.runs[0].tokens
        return text.replace(image, image_text(fake, whole, word, layout.tiles))


def video_patches(inputs: Mapping[str, Any], numbers: npt.NDArray[np.int64]) -> Any:
    """Return the patches of videos, a torch tensor (patches, values).

    The image processor has cut each frame into patches that repeat it in time. The patches of a
    video take each of their times from the frame that stands there.

    Args:
        inputs: what the image processor of a Qwen-VL makes of frames of one size.
        numbers: of the frames that each patch in time spans, (patches in time, span).
    """
    import torch

    pixels, span = inputs["pixel_values"], numbers.shape[1]
    frames, values = len(inputs["image_grid_thw"]), pixels.shape[-1]
    patches = pixels.reshape(frames, -1, 3, span, values // (3 * span))
    times = [patches[numbers[:, time], :, :, time] for time in range(span)]
    return torch.stack(times, dim=3).reshape(-1, values)


def correct_positions(tower: Any) -> None:
    """Let a SmolVLM2's vision tower add the right position to each patch of a whole image.

    The row of the table for patch i of n is the number of bounds k / n that are not above i / n,
    which is i. Version 4.57 multiplies i / n by 1 - 1e-6 before, so in float32 the number is i - 1:
    every patch but the first gets the position of its neighbour. In bfloat16, in which the
    published models run, the factor is rounded to 1. Version 5 has corrected it.

    Args:
        tower: the ``vision_model`` of a model in float32; its images must have the size that it has
            positions for.
    """

    def add_positions(module: Any, _: Any, inputs: dict[str, Any], output: Any) -> Any:
        patches = module.patch_embedding(inputs["pixel_values"]).flatten(2).transpose(1, 2)
        return patches + module.position_embedding.weight

    tower.embeddings.register_forward_hook(add_positions, with_kwargs=True)
