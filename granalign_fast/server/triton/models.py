"""The models of a search in Triton: encoders that the server runs, language models of a folder."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from granalign_fast.models.frame_encoder import FrameEncoder
from granalign_fast.models.graph_contract import IMAGE_GRAPH, SENTENCE_GRAPH
from granalign_fast.models.manifest import CLIP, SENTENCE_ENCODER
from granalign_fast.models.triton_names import IMAGE_MODEL, SENTENCE_MODEL, TEXT_MODEL, VERSION
from granalign_fast.pipeline import ModelFolder, SentenceEncoder
from granalign_fast.runtime.session import Session
from granalign_fast.runtime.shapes import load_graph

from .calls import CalledModel

_THREADS = 8
"""Requests to an encoder at the same time. Texts of one length are one request, and a query has
texts of about eight lengths."""


def _called(name: str, path: Path) -> CalledModel:
    """Return the session of a graph that a model of the server runs."""
    graph = load_graph(path).graph
    inputs = tuple(value.name for value in graph.input)
    return CalledModel(name, path, inputs, tuple(value.name for value in graph.output))


class CalledSentenceEncoder(SentenceEncoder):
    """A sentence encoder that tokenises here, and whose graph a model of the server runs.

    Args:
        folder: of the exported model.
    """

    def __init__(self, folder: Path) -> None:
        # Packed texts have a mask for all rows of a batch, which the server could not join.
        super().__init__(folder, graph=SENTENCE_GRAPH, threads=_THREADS)

    def _open(self, graph: str) -> Session:
        return _called(SENTENCE_MODEL, self._folder / graph)


class CalledFrameEncoder(FrameEncoder):
    """A frame encoder that tokenises and resizes here, and whose towers are models of the server.

    Args:
        folder: of the exported model.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, threads=_THREADS)

    def _open(self, graph: str) -> Session:
        name = IMAGE_MODEL if graph == IMAGE_GRAPH else TEXT_MODEL
        return _called(name, self._folder / graph)


class TritonModels(ModelFolder):
    """The encoders of a Triton model repository, and the language models of a folder.

    Args:
        repository: the folder of all models of the server.
        folder: of exported language models; None for none. Its encoders are not used.
        device: of the language models.

    Raises:
        GranAlignError: as for `ModelFolder`.
    """

    def __init__(self, repository: Path, folder: Path | None, *, device: str = "cpu") -> None:
        super().__init__(folder, device=device)
        for kind, name in ((SENTENCE_ENCODER, SENTENCE_MODEL), (CLIP, IMAGE_MODEL)):
            self.paths.pop(kind, None)
            if (version := repository / name / VERSION).is_dir():
                self.paths[kind] = version

    @cached_property
    def encoder(self) -> SentenceEncoder:
        """The sentence encoder."""
        return CalledSentenceEncoder(self.paths[SENTENCE_ENCODER])

    @cached_property
    def frame_encoder(self) -> FrameEncoder | None:
        """The encoder of frames; None if the repository has none."""
        return CalledFrameEncoder(self.paths[CLIP]) if CLIP in self.paths else None
