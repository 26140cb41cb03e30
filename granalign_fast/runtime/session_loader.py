"""A model file to ONNX Runtime's session, as often as it has to be loaded."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from granalign_fast.errors import GranAlignError, one_line

from .capture_lock import CAPTURE_LOCK
from .device import CUDA, TENSORRT, WEIGHTS_APART, Device, cuda_options


@dataclass(frozen=True)
class SessionLoader:
    """What a session is asked for, whether as CUDA graphs or not.

    Attributes:
        path: the ``.onnx`` file.
        device: the device that runs the model.
        providers: names and options, of CUDA's own but those that `cuda_options` gives.
        threads: CPU threads within one call; None leaves it to ONNX Runtime.
        memory_limit_bytes: of the arena on a GPU; None for no limit.
        stream: a `cupy.cuda.Stream` of its runs; None for one of its own.
        profile: whether to record what runs each node.
    """

    path: Path
    device: Device
    providers: tuple[tuple[str, dict[str, str]], ...]
    threads: int | None
    memory_limit_bytes: int | None
    stream: Any
    profile: bool

    def load(self, graphs: bool = False) -> Any:
        """An `onnxruntime.InferenceSession`.

        Args:
            graphs: whether runs are to be captured as CUDA graphs.

        Raises:
            GranAlignError: the file is corrupt, or the device cannot be had.
        """
        import onnxruntime

        on_gpu = any(name == CUDA for name, _ in self.providers)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors only: warnings would not name the model
        # Else its threads turn in circles for 40 ms after a run, and whatever comes next, another
        # model or the decoding of a video, has a core less: a third of a query's time.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if on_gpu and self.memory_limit_bytes is None:
            options.add_session_config_entry(*WEIGHTS_APART)
        if self.profile:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(tempfile.mkdtemp()) / "profile")
        cuda = cuda_options(
            self.device,
            memory_limit_bytes=self.memory_limit_bytes,
            graphs=graphs,
            stream=self.stream,
        )
        providers = [(name, cuda if name == CUDA else own) for name, own in self.providers]
        try:
            with CAPTURE_LOCK.shared() if on_gpu else nullcontext():
                # Else what fails on a GPU, now or in a run, would be tried again on the CPU.
                return onnxruntime.InferenceSession(
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

    def _model(self) -> Path | bytes:
        """The file, or for TensorRT, which lacks ONNX Runtime's own operators, what is in it."""
        if self.providers[0][0] != TENSORRT:
            return self.path
        from .standard_operators import standard_bytes

        return standard_bytes(self.path) or self.path
