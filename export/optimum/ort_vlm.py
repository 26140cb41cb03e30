"""A model class of optimum: exported vision-language models under transformers' own `generate`.

It is for users of transformers: its inputs come from transformers' processor, and its generation is
`GenerationMixin`. It needs torch. `VisionLanguageModel` does not, and it reuses the cache of a
frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, MissingExtraError
from granalign_fast.models.graph_contract import (
    DEEPSTACK,
    EMBEDDING_GRAPH,
    GRAPH,
    IMAGE_EMBEDS,
    INPUTS_EMBEDS,
    PATCHES_GRAPH,
)
from granalign_fast.models.manifest import VlmManifest

try:
    import torch
    from onnxruntime import InferenceSession
    from optimum.onnxruntime import ORTModelForCausalLM
    from transformers import AutoModelForImageTextToText, Qwen2_5_VLForConditionalGeneration
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError:
    raise MissingExtraError("optimum's model class", "optimum") from None


_ARCHITECTURES = ("Qwen2_5_VLForConditionalGeneration", "Qwen3VLForConditionalGeneration")
"""Families whose positions and images this class knows."""


@dataclass
class VlmOutput(CausalLMOutputWithPast):  # type: ignore[misc]
    """Logits (batch, 1, vocabulary), the cache, and the offset of positions.

    `rope_deltas`, (batch, 1), is the next position minus the number of tokens. `generate` passes it
    from step to step, because the model itself keeps no state between calls.
    """

    rope_deltas: torch.Tensor | None = None


class ORTModelForImageTextToText(ORTModelForCausalLM):  # type: ignore[misc]
    """An export of `export_vlm` as an optimum model: ``from_pretrained(folder).generate(...)``.

    Its inputs are the processor's outputs: `input_ids`, `attention_mask`, `pixel_values` and
    `image_grid_thw`, with rows padded on the left. Text without images works as well. Images must
    have the export's size.

    Raises:
        GranAlignError: the folder is no such export, it is of another family than Qwen-VL, or an
            image has another size.
    """

    auto_model_class = AutoModelForImageTextToText
    manifest: VlmManifest

    # Images belong to rows by their order. For beams these functions repeat images with their rows.
    _expand_inputs_for_generation = Qwen2_5_VLForConditionalGeneration._expand_inputs_for_generation
    _get_image_nums_and_video_nums = (
        Qwen2_5_VLForConditionalGeneration._get_image_nums_and_video_nums
    )

    @classmethod
    def from_pretrained(cls, model_id: str | Path, *args: Any, **kwargs: Any) -> Any:
        """Open a folder that `export_vlm` wrote; further arguments are those of optimum.

        Raises:
            GranAlignError: the folder is no such export, or was altered.
        """
        manifest = VlmManifest.read(Path(model_id))  # before optimum asks the hub
        if manifest.architecture not in _ARCHITECTURES:
            raise GranAlignError(
                f"{model_id}: got an export of {manifest.architecture}, expected one of "
                f"{_ARCHITECTURES}; open it with VisionLanguageModel"
            )
        return super().from_pretrained(model_id, *args, manifest=manifest, **kwargs)

    @classmethod
    def _from_pretrained(
        cls, model_id: str | Path, config: Any, *, manifest: VlmManifest, **kwargs: Any
    ) -> Any:
        # optimum reads the decoder's numbers at the top level, where Qwen3-VL has none.
        text = config.get_text_config()
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads"):
            if not hasattr(config, name):
                setattr(config, name, getattr(text, name))
        model = super()._from_pretrained(model_id, config, **kwargs | {"file_name": GRAPH})
        model.manifest = manifest
        # optimum-onnx 0.1.0 does not know this family's key-value heads.
        model.num_key_value_heads = manifest.kv_heads
        model.embed_size_per_head = manifest.head_dim
        # The vision tower and the embedding run in sessions of their own.
        model._patches, model._embedding = (
            InferenceSession(
                Path(model_id) / name,
                kwargs.get("session_options"),
                providers=model.providers,
                provider_options=[model.provider_options[name] for name in model.providers],
            )
            for name in (PATCHES_GRAPH, EMBEDDING_GRAPH)
        )
        return model

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return the inputs of `forward` at one step: the tokens that the cache does not hold."""
        _refuse_videos(kwargs)
        first = past_key_values is None
        past = 0 if first else past_key_values[0][0].shape[2]
        names = ["attention_mask", "rope_deltas", "use_cache"]
        if first:
            names += ["pixel_values", "image_grid_thw"]
        inputs = {name: kwargs.get(name) for name in names}
        return inputs | {"input_ids": input_ids[:, past:], "past_key_values": past_key_values}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        return updated | {"rope_deltas": outputs.rope_deltas}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        rope_deltas: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> VlmOutput:
        """Run one step, and return the logits of the last position.

        Args:
            input_ids: (batch, sequence).
            attention_mask: (batch, past + sequence); None if nothing is padded.
            past_key_values: keys and values of every layer, from the last step's output.
            pixel_values: (patches of all images, values), from the processor.
            image_grid_thw: (images, 3), in patches.
            rope_deltas: from the last step's output; None at the first step.
            use_cache: whether the output holds keys and values.

        Raises:
            GranAlignError: `rope_deltas` is missing after the first step, or images do not fit.
        """
        _refuse_videos(kwargs)
        flat = [array for layer in past_key_values or () for array in layer]
        past = flat[0].shape[2] if flat else 0
        batch, length = input_ids.shape
        if attention_mask is None:
            attention_mask = input_ids.new_ones(batch, past + length)
        if past and rope_deltas is None:
            raise GranAlignError(
                "rope_deltas: got none with past_key_values, expected those of the step before; "
                "pass outputs.rope_deltas on"
            )
        # Positions: at the first step from the prompt, then one after another.
        if rope_deltas is None:
            positions = self._positions(input_ids, attention_mask)
            rope_deltas = positions.amax((0, 2))[:, None] + 1 - length
        else:
            positions = torch.arange(past, past + length, device=input_ids.device) + rope_deltas
            positions = positions.expand(3, batch, length)
        # Embeddings of tokens, with those of images in the place of image tokens.
        (embeds,) = self._run(self._embedding, [INPUTS_EMBEDS], input_ids=input_ids)
        depth, seen = self.manifest.deepstack, input_ids == self.manifest.image_token
        features = embeds.new_zeros(1, 1, depth, embeds.shape[-1])
        if pixel_values is not None:
            images = self._embed_images(pixel_values, image_grid_thw, input_ids)
            embeds[seen] = images[0].flatten(0, 1)
            if depth:
                features = embeds.new_zeros(batch, length, depth, embeds.shape[-1])
                features[seen] = images[1].transpose(1, 2).flatten(0, 1)
        # The decoder, after an empty cache at the first step.
        if not flat:
            shape = (batch, self.num_key_value_heads, 0, self.embed_size_per_head)
            empty = torch.zeros(shape, dtype=self.dtype, device=self.device)
            flat = [empty] * len(self.key_value_input_names)
        inputs = {
            "inputs_embeds": embeds,
            "attention_mask": attention_mask,
            "position_ids": positions,
            **dict(zip(self.key_value_input_names, flat, strict=True)),
        }
        if depth:
            inputs[DEEPSTACK] = features.transpose(1, 2).contiguous()
        outputs = self._step(inputs, batch, past + length)
        cache = tuple(outputs[name] for name in self.key_value_output_names)
        keep = self.config.use_cache if use_cache is None else use_cache
        layers = tuple(cache[i : i + 2] for i in range(0, len(cache), 2)) if keep else None
        return VlmOutput(logits=outputs["logits"], past_key_values=layers, rope_deltas=rope_deltas)

    def _positions(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Compute time, row and column of every token, (3, batch, sequence).

        The positions of a frame's tokens count from the position of its first token. A frame takes
        as many positions as its longer side has tokens. Those of padding have no meaning.
        """
        _, rows, columns = self.manifest.layout().runs[0].grid
        frame = (ids == self.manifest.image_token) & (mask == 1)
        # Number of each token in its row, and of each frame token in its frame.
        index = mask.cumsum(-1) - 1
        done, within = frame.cumsum(-1), torch.zeros_like(index)
        within[frame] = (done[frame] - 1) % (rows * columns)
        # Each earlier frame takes fewer positions than it has tokens.
        whole = torch.where(frame, done - 1, done) // (rows * columns)  # frames before this token
        start = index - within - whole * (rows * columns - max(rows, columns))
        down = torch.where(frame, within // columns, 0)
        right = torch.where(frame, within % columns, 0)
        return torch.stack([start, start + down, start + right])

    def _embed_images(
        self, pixels: torch.Tensor, grids: torch.Tensor | None, ids: torch.Tensor
    ) -> list[torch.Tensor]:
        """Embed images: (images, image tokens, hidden), and `DEEPSTACK` if the tower gives it.

        Raises:
            GranAlignError: an image has another size, or the ids have other image tokens.
        """
        _, patches, values = self._patches.get_inputs()[0].shape
        height, width = self.manifest.image_size
        merge = round((patches / self.manifest.image_tokens) ** 0.5)
        _, rows, columns = self.manifest.layout().runs[0].grid
        expected = [1, merge * rows, merge * columns]
        got = [] if grids is None else grids.tolist()
        if not got or any(grid != expected for grid in got) or len(pixels) != patches * len(got):
            raise GranAlignError(
                f"image_grid_thw: got {got} for {len(pixels)} patches, expected {expected} for "
                f"every image; resize images to {height} x {width}, which the export is for"
            )
        tokens = int((ids == self.manifest.image_token).sum())
        if tokens != self.manifest.image_tokens * len(got):
            raise GranAlignError(
                f"input_ids: got {tokens} image tokens for {len(got)} images, expected "
                f"{self.manifest.image_tokens} for each"
            )
        pixels = pixels.reshape(len(got), patches, values).float()
        outputs = [IMAGE_EMBEDS, *([DEEPSTACK] if self.manifest.deepstack else [])]
        return self._run(self._patches, outputs, pixel_values=pixels)

    def _run(
        self, session: InferenceSession, outputs: list[str], **inputs: torch.Tensor
    ) -> list[torch.Tensor]:
        arrays = {name: tensor.numpy(force=True) for name, tensor in inputs.items()}
        found = session.run(outputs, arrays)
        return [torch.from_numpy(array).to(self.device) for array in found]

    def _step(self, inputs: dict[str, Any], batch: int, length: int) -> dict[str, torch.Tensor]:
        """Run the decoder as optimum does, with or without bound buffers."""
        if not self.use_io_binding:
            arrays = self._prepare_onnx_inputs(True, inputs)
            outputs: dict[str, torch.Tensor] = self._prepare_onnx_outputs(
                True, self.session.run(None, arrays)
            )
            return outputs
        shape = (batch, self.num_key_value_heads, length, self.embed_size_per_head)
        known = dict.fromkeys(self.key_value_output_names, shape)
        shapes, buffers = self._prepare_io_binding(inputs, known_output_shapes=known)
        if self.device.type == "cpu":
            self.session.run_with_iobinding(self._io_binding)
        else:
            self._io_binding.synchronize_inputs()
            self.session.run_with_iobinding(self._io_binding)
            self._io_binding.synchronize_outputs()
        return {name: buffers[name].view(shapes[name]) for name in buffers}


def _refuse_videos(inputs: dict[str, Any]) -> None:
    """Raise if the processor's outputs hold a video, which this class does not take."""
    if inputs.get("pixel_values_videos") is not None:
        raise GranAlignError(
            "pixel_values_videos: got a video, expected images alone; pass its frames as "
            "images, or use VisionLanguageModel.prefill_clips"
        )
