"""Published models that go together: where each comes from, and on what terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from granalign_fast.errors import GranAlignError


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model on the hub, at one commit.

    Attributes:
        kind: what `granalign export` calls it.
        name: ``org/name``.
        revision: the commit, so that the weights cannot change.
        licence: under which it is published.
        gated: whether the hub asks for an account that has accepted the licence.
    """

    kind: str
    name: str
    revision: str
    licence: str
    gated: bool = False

    @property
    def source(self) -> str:
        """What `granalign export` takes."""
        return f"{self.name}@{self.revision}"


_CLIP = PublishedModel(
    "clip",
    "openai/clip-vit-base-patch32",
    # The commit that holds the weights as safetensors; the main branch has them pickled.
    "c237dc49a33fc61debc9276459120b7eac67e7ef",
    "MIT",
)
_VLM = PublishedModel(
    "vlm",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "cc594898137f460bfe9f0759e9844b3ce807cfb5",
    "Apache-2.0",
)

MODEL_SETS: Mapping[str, tuple[PublishedModel, ...]] = {
    # What GranAlign's authors ran.
    "paper": (
        _CLIP,
        PublishedModel(
            "llm",
            "meta-llama/Meta-Llama-3-8B-Instruct",
            "8afb486c1db24fe5011ec46dfbe5b5dccdb575c2",
            "Llama 3 Community License",
            gated=True,
        ),
        _VLM,
    ),
    # The same with a rewriter that asks for no account.
    "open": (
        _CLIP,
        PublishedModel(
            "llm",
            "Qwen/Qwen2.5-7B-Instruct",
            "a09a35458c702b33eeacc393d103063234e8bc28",
            "Apache-2.0",
        ),
        _VLM,
    ),
}
"""Beside them stands all-MiniLM-L6-v2 (Apache-2.0), which needs no hub: see `models`."""


def model_set(name: str) -> tuple[PublishedModel, ...]:
    """A set by its name.

    Raises:
        GranAlignError: there is none of that name.
    """
    if name not in MODEL_SETS:
        raise GranAlignError(f"models: got {name!r}, expected one of: {', '.join(MODEL_SETS)}")
    return MODEL_SETS[name]
