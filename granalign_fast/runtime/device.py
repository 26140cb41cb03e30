"""What a device is called, and what ONNX Runtime is asked for on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from granalign_fast.errors import GranAlignError


@dataclass(frozen=True)
class Device:
    """A device as ONNX Runtime knows it, and the extra that brings it."""

    kind: str
    provider: str
    extra: str
    index: int | None = None

    @classmethod
    def parse(cls, name: str) -> Device:
        """``cpu``, ``cuda``, ``cuda:1``, ``tensorrt`` or ``tensorrt:1``."""
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?", name) if isinstance(name, str) else None
        kind, index = match.groups() if match else (None, None)
        if kind not in _PROVIDERS or (kind == "cpu" and index):
            raise GranAlignError(
                f"device {name!r}: expected 'cpu', 'cuda', 'cuda:<number>' or 'tensorrt'"
            )
        provider, extra = _PROVIDERS[kind]
        return cls(kind, provider, extra, int(index) if index else None)

    @property
    def name(self) -> str:
        """As `parse` reads it."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    def options(self) -> dict[str, str]:
        """Provider options that name it."""
        return {} if self.index is None else {"device_id": str(self.index)}


CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": (CUDA, "cuda"),
    "tensorrt": (TENSORRT, "tensorrt"),
}


class Setting(NamedTuple):
    """An option of ONNX Runtime's CUDA provider, and why it is not left at its default."""

    option: str
    value: str
    reason: str


CUDA_SETTINGS = (
    Setting(
        "cudnn_conv_algo_search",
        "HEURISTIC",
        "The default tries every algorithm at each new shape, in the middle of a request. Our own "
        "graphs have no convolution; another's image tower has one, its first layer: there is next "
        "to nothing to find.",
    ),
    Setting(
        "use_tf32",
        "0",
        "fp32 exports claim the source's results to 1e-4; TF32 keeps 10 bits of each factor. fp16 "
        "exports have no fp32 products that it could make faster.",
    ),
)
"""On every CUDA session. Its arena keeps to the default, which takes more than it is asked for: a
cache that grows with every token finds room in what an earlier one has left."""

WEIGHTS_APART = ("session.use_device_allocator_for_initializers", "1")
"""A session's option: weights are allocated to their size and not from the arena, which would round
them up. Not beside a limit of the arena, which refuses no weights that lie apart from it."""

_MEMORY_LIMIT, _GRAPHS, _STREAM = "gpu_mem_limit", "enable_cuda_graph", "user_compute_stream"


def cuda_options(
    device: Device,
    *,
    memory_limit_bytes: int | None = None,
    graphs: bool = False,
    stream: Any = None,
) -> dict[str, str]:
    """Options of ONNX Runtime's CUDA provider.

    Args:
        device: with the GPU's number.
        memory_limit_bytes: of its arena; None for no limit.
        graphs: whether runs are to be captured as CUDA graphs.
        stream: a `cupy.cuda.Stream` that runs are put on; None for one of its own.

    Raises:
        GranAlignError: the limit is no positive number of bytes.
    """
    options = device.options() | {own.option: own.value for own in CUDA_SETTINGS}
    if memory_limit_bytes is not None:
        if not isinstance(memory_limit_bytes, int) or memory_limit_bytes < 1:
            raise GranAlignError(
                f"memory_limit_bytes: got {memory_limit_bytes!r}, expected a positive number of "
                f"bytes, or None"
            )
        options[_MEMORY_LIMIT] = str(memory_limit_bytes)
    if graphs:
        options[_GRAPHS] = "1"
    if stream is not None:
        options[_STREAM] = str(stream.ptr)
    return options
