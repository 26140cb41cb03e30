"""What is known of a published model: its commit, its licence and the numbers of its layers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecoderNumbers:
    """The numbers of a decoder that decide its size; `wide` is the width of its MLP."""

    hidden: int
    wide: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    head_dim: int = 128
    tied: bool = False
    """Whether the last product uses the table of embeddings."""
    biased: bool = False
    """Whether query, key and value have biases."""
    head_norms: bool = False
    """Whether the heads of queries and keys are normalised."""


@dataclass(frozen=True, slots=True)
class TowerNumbers:
    """The numbers of a Qwen-VL's vision tower that decide its size; by default of Qwen2.5-VL."""

    wide: int
    out: int
    hidden: int = 1280
    layers: int = 32
    patch: int = 14
    merge: int = 2
    temporal: int = 2
    gated: bool = True
    """Whether perceptrons are gated and norms have no biases; otherwise perceptrons are plain and
    norms have biases."""
    positions: int = 0
    """Rows of the table of learned positions; 0 without one."""
    mergers: int = 0
    """Mergers besides the last, whose features the decoder adds."""


@dataclass(frozen=True, slots=True)
class SquareTowerNumbers:
    """The numbers of a SmolVLM2's vision tower that decide its size; `side` is an image's edge."""

    side: int
    patch: int
    merge: int
    out: int
    hidden: int = 768
    wide: int = 3072
    layers: int = 12
    heads: int = 12
    temporal: int = 1
    mergers: int = 0

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.side // self.patch) ** 2


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """A model on the hub, at one commit.

    Attributes:
        kind: the subcommand of `granalign export` that exports it.
        name: ``org/name``.
        revision: the commit; a commit's weights cannot change.
        licence: the name of its licence.
        languages: what its card says that it understands.
        parameters: number of weights.
        download: bytes of its safetensors.
        read_in: where commit, licence and parameters were read.
        verified: False if the licence is from memory alone.
        gated: whether the hub requires an account that has accepted the licence.
        decoder: of a language model or a vision-language model.
        tower: of a vision-language model.
    """

    kind: str
    name: str
    revision: str
    licence: str
    languages: str
    parameters: int
    download: int
    read_in: str
    verified: bool = True
    gated: bool = False
    decoder: DecoderNumbers | None = None
    tower: TowerNumbers | SquareTowerNumbers | None = None
    words: int = 0
    """Size of an encoder's vocabulary."""
    width: int = 0
    """Values of a token of an encoder's text tower."""
    shared: bool = False
    """Whether the graphs of a sentence encoder share one file of weights; otherwise each holds
    them all."""

    @property
    def source(self) -> str:
        """The model's name and commit, as `granalign export` takes them."""
        return f"{self.name}@{self.revision}"


@dataclass(frozen=True, slots=True)
class ModelSet:
    """Models of every kind for one machine, in one precision.

    Attributes:
        name: as `granalign models get` takes it.
        machine: what it is meant for.
        precision: ``"fp16"``, ``"fp32"`` or ``"int4"``; `precision_of` says what each model gets.
        models: one of each kind.
    """

    name: str
    machine: str
    precision: str
    models: tuple[PublishedModel, ...]
