"""Parse device names, and choose ONNX Runtime's options for each device."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from granalign_fast.errors import GranAlignError


@dataclass(frozen=True)
class Device:
    """A device by name, as ONNX Runtime knows it.

    Attributes:
        kind: ``"cpu"``, ``"cuda"`` or ``"tensorrt"``.
        provider: the name of ONNX Runtime's execution provider.
        extra: this package's extra that installs the provider.
        index: the GPU's number; None if the name has none.
    """

    kind: str
    provider: str
    extra: str
    index: int | None = None

    @classmethod
    def parse(cls, name: str) -> Device:
        """Parse ``cpu``, ``cuda``, ``cuda:1``, ``tensorrt`` or ``tensorrt:1``.

        Raises:
            GranAlignError: it is none of these.
        """
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
        """The name that `parse` reads."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    def options(self) -> dict[str, str]:
        """Return the provider option for the GPU's number; empty if the name has none."""
        return {} if self.index is None else {"device_id": str(self.index)}


CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_PROVIDERS = {
    "cpu": ("CPUExecutionProvider", "cpu"),
    "cuda": (CUDA, "cuda"),
    "tensorrt": (TENSORRT, "tensorrt"),
}
"""Kind of device: ONNX Runtime's provider, this package's extra."""


class Setting(NamedTuple):
    """An option of ONNX Runtime's CUDA provider, and the reason not to keep its default."""

    option: str
    value: str
    reason: str


CUDA_SETTINGS = (
    Setting(
        "cudnn_conv_algo_search",
        "HEURISTIC",
        "The default times every algorithm at each new shape, in the middle of a request. Our own "
        "graphs have no convolution. An image tower exported by others has one, in its first "
        "layer, so there is little time to save.",
    ),
    Setting(
        "use_tf32",
        "0",
        "fp32 exports promise the source's results to 1e-4, but TF32 keeps only 10 bits of each "
        "factor. fp16 exports have no fp32 products that TF32 could speed up.",
    ),
)
"""Options of every CUDA session.

The arena keeps its default, which allocates more than is requested: a key/value cache that grows
with every token can then reuse the memory of an earlier one."""

SEPARATE_WEIGHTS = ("session.use_device_allocator_for_initializers", "1")
"""Session option: allocate weights at their exact size, not from the arena, which rounds them up.

Not combined with a memory limit: the limit would not count these weights."""

_MEMORY_LIMIT, _GRAPHS, _STREAM = "gpu_mem_limit", "enable_cuda_graph", "user_compute_stream"


def cuda_options(
    device: Device,
    *,
    memory_limit_bytes: int | None = None,
    graphs: bool = False,
    stream: Any = None,
) -> dict[str, str]:
    """Return the options of ONNX Runtime's CUDA provider.

    Args:
        device: the device, with the GPU's number.
        memory_limit_bytes: limit of the provider's arena; None for no limit.
        graphs: whether runs are to be captured as CUDA graphs.
        stream: a `cupy.cuda.Stream` for the runs; None lets the provider create one.

    Raises:
        GranAlignError: the limit is not a positive number of bytes.
    """
    options = device.options() | {setting.option: setting.value for setting in CUDA_SETTINGS}
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
