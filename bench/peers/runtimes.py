"""Peers: other software for the same work, measured in the same run if it is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from granalign_fast.bench.harness.random_tower import TowerShape, Weights, torch_tower
from granalign_fast.errors import one_line

Embed = Callable[[list[str]], npt.NDArray[Any]]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """Software that takes part if it is installed.

    Attributes:
        name: name in the tables.
        suite: suite in which it takes part.
        modules: modules that it needs.
        brings: arguments of ``pip install`` that bring these modules.
    """

    name: str
    suite: str
    modules: tuple[str, ...]
    brings: str

    @property
    def installed(self) -> bool:
        """Whether its modules can be found; they are not imported."""
        try:
            return all(find_spec(module) is not None for module in self.modules)
        except (ImportError, ValueError):  # the parent package is broken, or is no package
            return False


_ST = "sentence_transformers"
TORCH_KERNELS = Peer("torch", "kernels", ("torch",), "torch")
ST_TORCH = Peer("sentence-transformers", "encoders", (_ST,), "sentence-transformers")
ST_ONNX = Peer(
    *("sentence-transformers, ONNX", "encoders", (_ST, "optimum.onnxruntime")),
    "sentence-transformers optimum-onnx[onnxruntime]",
)
ST_OPENVINO = Peer(
    *("sentence-transformers, OpenVINO", "encoders", (_ST, "openvino", "optimum.intel")),
    "sentence-transformers 'optimum-intel[openvino]<2'",  # 2.0 needs another optimum
)
OPENCV = Peer("OpenCV", "decode", ("cv2",), "opencv-python-headless")
# Later releases have wheels for CUDA only.
TORCHCODEC = Peer("torchcodec", "decode", ("torch", "torchcodec"), "'torchcodec<0.14' torch")
TRANSFORMERS = Peer("transformers", "generation", ("torch", "transformers"), "transformers torch")
COMPILED = Peer(
    "transformers, compiled", "generation", ("torch", "transformers"), "transformers torch"
)
STOCK = Peer(
    *("stock optimum export", "generation", ("torch", "transformers", "optimum.onnxruntime")),
    "optimum-onnx[onnxruntime] transformers torch",
)
GENAI = Peer(
    *("onnxruntime-genai", "generation"),
    ("onnxruntime_genai", "onnx_ir", "torch", "transformers"),
    "'onnxruntime-genai<0.16' onnx-ir 'transformers<5' torch",  # 0.16 needs transformers 5
)
LLAMA_CPP = Peer("llama.cpp", "rewriting", ("llama_cpp",), "llama-cpp-python")
LLAMA_SERVER = Peer(
    *("llama.cpp, server", "rewriting", ("llama_cpp", "fastapi", "uvicorn", "starlette_context")),
    "'llama-cpp-python[server]'",
)
GENAI_ENGINE = Peer(
    *("onnxruntime-genai, engine", "rewriting"),
    ("onnxruntime_genai", "onnx_ir", "torch", "transformers"),
    "'onnxruntime-genai>=0.18' onnx-ir 'transformers>=5' torch",
)
FAISS = Peer("Faiss", "library", ("faiss",), "faiss-cpu")
TOWER = Peer("torch", "shapes", ("torch",), "torch")
PEERS = (
    *(TOWER, TORCH_KERNELS, ST_TORCH, ST_ONNX, ST_OPENVINO, OPENCV, TORCHCODEC),
    *(TRANSFORMERS, COMPILED, STOCK, GENAI, LLAMA_CPP, LLAMA_SERVER, GENAI_ENGINE),
    FAISS,
)

ON_THE_CPU = "it runs on the CPU here"
"""Reason for leaving an installed peer out on a GPU."""


def absent() -> dict[str, str]:
    """Return the peers that are not installed, and the command that installs each."""
    return {
        f"{peer.name} ({peer.suite})": f"pip install {peer.brings}"
        for peer in PEERS
        if not peer.installed
    }


def leave_out(peers: Sequence[Peer], note: Note, why: str) -> None:
    """Note for each installed peer why it does not take part."""
    for peer in peers:
        if peer.installed:
            note(f"{peer.name}: left out, {why}")


@contextlib.contextmanager
def dropping_out(peer: Peer, note: Note) -> Iterator[None]:
    """Drop a peer that fails, with a note: other software must not end the run."""
    try:
        yield
    except Exception as error:  # other software may raise anything
        note(f"{peer.name} is installed but failed: {one_line(error)}")


def sentence_encoders(
    model: Path, scratch: Path, note: Note, device: str = "cpu"
) -> dict[str, Embed]:
    """Return sentence-transformers with each installed backend, by name.

    On a GPU only torch takes part: in float32, in float16, and in float16 compiled.

    Args:
        model: a sentence-transformers folder.
        scratch: folder for backends that export the model.
        note: is called with a message for each backend that failed.
        device: device, in torch's notation.
    """
    from granalign_fast.export.sources.folder import quiet

    encoders: dict[str, Embed] = {}
    if device != "cpu":
        for kind in ("", ", fp16", ", fp16 compiled") if ST_TORCH.installed else ():
            with dropping_out(ST_TORCH, note), quiet():
                encoders[f"{ST_TORCH.name}{kind}"] = _embedder(model, "torch", device, kind)
        leave_out((ST_ONNX, ST_OPENVINO), note, ON_THE_CPU)
        return encoders
    for peer, backend in ((ST_TORCH, "torch"), (ST_ONNX, "onnx"), (ST_OPENVINO, "openvino")):
        if not peer.installed:
            continue
        with dropping_out(peer, note), quiet():
            source = model if backend == "torch" else _copied(model, scratch / backend)
            encoders[peer.name] = _embedder(source, backend)
    return encoders


def _copied(model: Path, folder: Path) -> Path:
    """Return a writable folder with links to the model's files, for a backend that exports."""
    for path in model.rglob("*"):
        if path.is_file() and "onnx" not in path.parts:
            link = folder / path.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path)
    return folder


def _embedder(folder: Path, backend: str, device: str = "cpu", kind: str = "") -> Embed:
    from sentence_transformers import SentenceTransformer

    # By default OpenVINO computes in bfloat16 on processors that support it.
    settings = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}} if backend == "openvino" else {}
    model: Any = SentenceTransformer(
        str(folder), device=device, backend=backend, model_kwargs=settings
    )
    if "fp16" in kind:
        model.half()
    if "compiled" in kind:
        import torch

        inner = model[0].auto_model
        inner.forward = torch.compile(inner.forward, dynamic=True)
    model.encode(["warm"], show_progress_bar=False)
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))


def torch_curves(device: str, power: float) -> Callable[[Any], Any] | None:
    """Return a function for similarity curves of equally long videos by `torch.bmm`.

    It takes ``(variants, clips)``, arrays `(queries, variants, dim)` and `(queries, clips, dim)`,
    and returns `(queries, variants, clips)` float32 on the same device: a NumPy array on the CPU,
    a CuPy array on a GPU, without a copy to the host. None if torch is not installed.
    """
    if not TORCH_KERNELS.installed:
        return None
    import torch

    def run(arrays: tuple[Any, Any]) -> Any:
        variants, clips = (torch.as_tensor(array, device=device) for array in arrays)
        with torch.inference_mode():
            cosines = torch.bmm(variants, clips.transpose(1, 2))
            low = cosines.amin(dim=2, keepdim=True)
            span = (cosines.amax(dim=2, keepdim=True) - low).clamp_min(1e-5)
            curves = ((cosines - low) / span).pow(power)
        if device == "cpu":
            return curves.numpy()
        import cupy

        return cupy.from_dlpack(curves)

    return run


def every_frame(path: Path, seconds: Sequence[float]) -> list[npt.NDArray[Any]]:
    """Return the frames shown at these times; PyAV decodes every frame up to the last one."""
    import av

    images: list[npt.NDArray[Any]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shown = None
        todo = iter(seconds)
        targets = next(todo, None)
        for frame in container.decode(stream):
            while targets is not None and frame.time is not None and frame.time > targets + 1e-6:
                images.append((shown or frame).to_ndarray(format="rgb24"))
                targets = next(todo, None)
            if targets is None:
                break
            shown = frame
        if shown is not None and targets is not None:
            images += [shown.to_ndarray(format="rgb24")] * (1 + len(list(todo)))
    return images


def opencv_frames() -> Callable[[Path, Sequence[float]], list[Any]] | None:
    """Return a reader like `every_frame` that uses OpenCV; None if it is not installed.

    It reads forward to each frame, without seeking.
    """
    if not OPENCV.installed:
        return None
    cv2: Any = import_module("cv2")

    def read(path: Path, seconds: Sequence[float]) -> list[Any]:
        video = cv2.VideoCapture(str(path))
        rate = video.get(cv2.CAP_PROP_FPS)
        images, number, targets = [], 0, [int(second * rate + 1e-6) for second in seconds]
        for target in targets:
            while number <= target and video.grab():
                number += 1
            fine, image = video.retrieve()
            if fine:
                images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        video.release()
        return images

    return read


def torchcodec_frames(note: Note) -> Callable[[Path, Sequence[float]], list[Any]] | None:
    """Return a reader like `every_frame` that uses torchcodec and the system's FFmpeg libraries.

    Args:
        note: is called with the reason if torchcodec cannot be loaded.

    Returns:
        The reader; None if torchcodec is not installed or cannot be loaded.
    """
    if not TORCHCODEC.installed:
        return None
    with dropping_out(TORCHCODEC, note):
        decoders: Any = import_module("torchcodec.decoders")

        def read(path: Path, seconds: Sequence[float]) -> list[Any]:
            # 0: FFmpeg chooses the number of threads, as for the other readers; the default is 1.
            decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=0)
            return list(decoder.get_frames_played_at(list(seconds)).data.numpy())

        return read
    return None


def image_towers(
    shape: TowerShape, weights: Weights, note: Note, *, device: str, half: bool
) -> dict[str, Callable[[Any], npt.NDArray[np.float32]]]:
    """Return an image tower in torch if that is installed, on a GPU also compiled, by name.

    Args:
        shape: the tower's sizes.
        weights: the tower's weights.
        note: is called with a message for each tower that failed.
        device: device, in torch's notation.
        half: whether to compute in float16.

    Returns:
        Functions from pixels `(images, 3, side, side)` on the device to embeddings on the host.
    """
    towers: dict[str, Callable[[Any], npt.NDArray[np.float32]]] = {}
    for compiled in (False, True) if device != "cpu" else (False,):
        if not TOWER.installed:
            continue
        with dropping_out(TOWER, note):
            import torch

            tower = torch_tower(shape, weights, device, half=half, compiled=compiled)
            name = f"{TOWER.name}, compiled" if compiled else TOWER.name
            towers[name] = lambda pixels, tower=tower: tower(torch.from_dlpack(pixels))  # type: ignore[misc]
    return towers
