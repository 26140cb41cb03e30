"""The beginning that all prompts about clips of one form share, and the rest of each prompt."""

from __future__ import annotations

from typing import Any

from granalign_fast.errors import GranAlignError
from granalign_fast.models.chat import common_start
from granalign_fast.models.vision_language_model import VisionLanguageModel

from . import prompts


class PromptStart:
    """The tokens of prompts about clips of so many frames, which are so many seconds apart.

    Args:
        model: the vision-language model.
        frames: of a clip.
        seconds: from a frame of a clip to the next.

    Raises:
        GranAlignError: the model takes no such clips, or its chat template does not put the frames
            once, before the text.
    """

    def __init__(self, model: VisionLanguageModel, frames: int = 1, seconds: float = 0.0) -> None:
        self._model = model
        self.frames, self.seconds = frames, seconds
        layout = model.layout(frames, seconds)
        self._content = layout.content
        self.images = layout.images * layout.span
        """Images of the vision tower's size that a clip needs."""
        self.ids = common_start(self.prompt("Describe it."), self.prompt("What is it?"))
        """The token ids that every prompt begins with, the placeholder of the frames among them."""
        try:
            expanded = layout.expand(self.ids)
        except GranAlignError:
            raise GranAlignError(
                f"chat template: got no prompt that begins with the {self._content}, expected its "
                f"token once, before the text; choose another vision-language model"
            ) from None
        self.tokens = len(expanded.ids)
        """The number of tokens of a prefix, those of the frames among them."""
        self.next_position = expanded.next_position
        """The position of the first token after a prefix."""

    def prompt(self, task: str) -> list[int]:
        """Return the token ids of a whole prompt: system message, frames and task."""
        return self._model.chat(prompts.about_clip(task, self.frames, self._content))

    def suffix(self, task: str) -> list[int]:
        """Return the token ids of a prompt after its beginning.

        Raises:
            GranAlignError: the chat template lets the task change what stands before it.
        """
        ids = self.prompt(task)
        if ids[: len(self.ids)] != self.ids:
            raise GranAlignError(
                "chat template: got a prompt that begins differently, expected the same tokens up "
                "to the frames in each; choose another vision-language model"
            )
        return ids[len(self.ids) :]

    def key(self) -> list[Any]:
        """Return what shapes a prefix besides the model and the frames."""
        return self.ids if self.frames == 1 else [self.ids, self.frames, self.seconds]
