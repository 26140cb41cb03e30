"""Load a model file as an ONNX Runtime session: with CUDA graphs, or again without them."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.parsing.limits import MOST_GRAPH_BYTES
from granalign_fast.reading import checked_file

from .capture_lock import CAPTURE_LOCK
from .device import CUDA, SEPARATE_WEIGHTS, TENSORRT, Device, cuda_options
from .mapped_pages import release_memory


@dataclass(frozen=True)
class SessionLoader:
    """All settings of a session, so that it can be loaded more than once.

    Attributes:
        path: the ``.onnx`` file.
        device: the device that runs the model.
        providers: names and options of the providers. The options of the CUDA provider are replaced
            by those of `cuda_options`.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.
        memory_limit_bytes: limit of the arena on a GPU; None for no limit.
        stream: the `cupy.cuda.Stream` of its runs; None lets the session create one.
        profile: whether to record which provider runs each node.
        lean: whether a CPU gives memory back after each run, and the pages of weights of which it
            made copies. Neither costs measurable time.
    """

    path: Path
    device: Device
    providers: tuple[tuple[str, dict[str, str]], ...]
    threads: int | None
    memory_limit_bytes: int | None
    stream: Any
    profile: bool
    lean: bool = False

    def load(self, graphs: bool = False) -> Any:
        """Load the file as an `onnxruntime.InferenceSession`.

        Args:
            graphs: whether runs are to be captured as CUDA graphs.

        Raises:
            GranAlignError: the file is corrupt, the device cannot be opened, or ONNX Runtime cannot
                capture the model although `graphs` is set.
        """
        import onnxruntime

        # Settings of the session.
        on_gpu = any(name == CUDA for name, _ in self.providers)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings would not name the model
        # Otherwise ONNX Runtime's threads busy-wait for 40 ms after a run, and take cores from the
        # next step, such as another model or video decoding. It costs a third of a query's time.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if self.lean and not on_gpu:
            options.enable_cpu_mem_arena = False
        if on_gpu and self.memory_limit_bytes is None:
            options.add_session_config_entry(*SEPARATE_WEIGHTS)
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.mkdtemp()) / "profile")
        # Settings of the providers.
        cuda = cuda_options(
            self.device,
            memory_limit_bytes=self.memory_limit_bytes,
            graphs=graphs,
            stream=self.stream,
        )
        providers = [(name, cuda if name == CUDA else other) for name, other in self.providers]
        try:
            with CAPTURE_LOCK.shared() if on_gpu else nullcontext():
                # Without fallback: it would repeat on the CPU what fails on a GPU, now or in a run.
                session = onnxruntime.InferenceSession(
                    self._model(), options, providers=providers, enable_fallback=0
                )
        except GranAlignError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common base of their own
            check = ", or see nvidia-smi for its driver and free memory" if on_gpu else ""
            raise GranAlignError(
                f"{self.path}: ONNX Runtime cannot load it ({one_line(error)}); "
                f"export the model again{check}"
            ) from None
        if self.lean and not on_gpu:
            release_memory(self.path.parent)
        return session

    def _model(self) -> Path | bytes:
        """Return the file's path, or for TensorRT its bytes in standard operators only."""
        checked_file(self.path, MOST_GRAPH_BYTES, inside=self.path.parent)
        if self.providers[0][0] != TENSORRT:
            return self.path
        from .standard_operators import standard_bytes

        return standard_bytes(self.path) or self.path
