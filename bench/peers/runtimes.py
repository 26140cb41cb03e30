"""What other people use for the same work, measured in the same run where it is installed."""

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

from granalign_fast.bench.harness.random_clip import TowerShape, Weights, torch_tower
from granalign_fast.errors import one_line

Embed = Callable[[list[str]], npt.NDArray[Any]]
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that takes part when it is installed.

    Attributes:
        name: as in the tables.
        suite: in which it takes part.
        modules: all of which must be there.
        brings: the packages that bring them.
    """

    name: str
    suite: str
    modules: tuple[str, ...]
    brings: str

    @property
    def installed(self) -> bool:
        """Whether it can take part, as far as can be known without importing it."""
        try:
            return all(find_spec(module) is not None for module in self.modules)
        except (ImportError, ValueError):  # a parent package that is broken, or is not one
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
    "sentence-transformers 'optimum-intel[openvino]<2'",  # later ones need another optimum
)
OPENCV = Peer("OpenCV", "decode", ("cv2",), "opencv-python-headless")
# Of later ones the registry has CUDA's wheels alone.
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
    "'onnxruntime-genai<0.16' onnx-ir 'transformers<5' torch",  # later ones need transformers 5
)
TOWER = Peer("torch", "shapes", ("torch",), "torch")
PEERS = (
    *(TOWER, TORCH_KERNELS, ST_TORCH, ST_ONNX, ST_OPENVINO, OPENCV, TORCHCODEC),
    *(TRANSFORMERS, COMPILED, STOCK, GENAI),
)

ON_THE_CPU = "it runs on the CPU here"
"""Why a peer that is installed is left out on a GPU."""


def absent() -> dict[str, str]:
    """Peers that are not installed, and the command that brings each."""
    return {
        f"{peer.name} ({peer.suite})": f"pip install {peer.brings}"
        for peer in PEERS
        if not peer.installed
    }


def left_out(peers: Sequence[Peer], note: Note, why: str) -> None:
    """Say of those that are installed why they take no part."""
    for peer in peers:
        if peer.installed:
            note(f"{peer.name}: left out, {why}")


@contextlib.contextmanager
def trying(peer: Peer, note: Note) -> Iterator[None]:
    """A peer that fails drops out with a note: a run is not lost to somebody else's package."""
    try:
        yield
    except Exception as error:  # whatever a package of another's raises
        note(f"{peer.name} is installed but failed: {one_line(error)}")


def sentence_encoders(
    model: Path, scratch: Path, note: Note, device: str = "cpu"
) -> dict[str, Embed]:
    """sentence-transformers with each of its backends that is installed, by name.

    On a GPU it takes part with torch alone: in float32, in float16, and that compiled.

    Args:
        model: a sentence-transformers folder.
        scratch: where a backend that exports may write.
        note: is told of one that failed.
        device: as torch names it.
    """
    from granalign_fast.export.sources.folder import quiet

    found: dict[str, Embed] = {}
    if device != "cpu":
        for kind in ("", ", fp16", ", fp16 compiled") if ST_TORCH.installed else ():
            with trying(ST_TORCH, note), quiet():
                found[f"{ST_TORCH.name}{kind}"] = _embedder(model, "torch", device, kind)
        left_out((ST_ONNX, ST_OPENVINO), note, ON_THE_CPU)
        return found
    for peer, backend in ((ST_TORCH, "torch"), (ST_ONNX, "onnx"), (ST_OPENVINO, "openvino")):
        if not peer.installed:
            continue
        with trying(peer, note), quiet():
            source = model if backend == "torch" else _copied(model, scratch / backend)
            found[peer.name] = _embedder(source, backend)
    return found


def _copied(model: Path, folder: Path) -> Path:
    """A folder that an export may write into, beside links to the model's files."""
    for path in model.rglob("*"):
        if path.is_file() and "onnx" not in path.parts:
            link = folder / path.relative_to(model)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(path)
    return folder


def _embedder(folder: Path, backend: str, device: str = "cpu", kind: str = "") -> Embed:
    from sentence_transformers import SentenceTransformer

    # OpenVINO would take bfloat16 by itself where the processor has it.
    more = {"ov_config": {"INFERENCE_PRECISION_HINT": "f32"}} if backend == "openvino" else {}
    model: Any = SentenceTransformer(str(folder), device=device, backend=backend, model_kwargs=more)
    if "fp16" in kind:
        model.half()
    if "compiled" in kind:
        import torch

        inner = model[0].auto_model
        inner.forward = torch.compile(inner.forward, dynamic=True)
    model.encode(["warm"], show_progress_bar=False)
    return lambda texts: np.asarray(model.encode(texts, show_progress_bar=False))


def torch_curves(device: str, power: float) -> Callable[[Any], Any] | None:
    """Similarity curves of videos of one length by `torch.bmm`; None without torch.

    The result takes ``(variants, clips)``, arrays `(queries, variants, dim)` and
    `(queries, clips, dim)`, and gives `(queries, variants, clips)` float32 where they are: of NumPy
    on the CPU, of CuPy on a GPU, from which nothing is fetched.
    """
    if not TORCH_KERNELS.installed:
        return None
    import torch

    def run(given: tuple[Any, Any]) -> Any:
        variants, clips = (torch.as_tensor(array, device=device) for array in given)
        with torch.inference_mode():
            cosines = torch.bmm(variants, clips.transpose(1, 2))
            low = cosines.amin(dim=2, keepdim=True)
            span = (cosines.amax(dim=2, keepdim=True) - low).clamp_min(1e-5)
            found = ((cosines - low) / span).pow(power)
        if device == "cpu":
            return found.numpy()
        import cupy

        return cupy.from_dlpack(found)

    return run


def every_frame(path: Path, seconds: Sequence[float]) -> list[npt.NDArray[Any]]:
    """The frames shown at these times, by decoding every frame up to the last with PyAV."""
    import av

    found: list[npt.NDArray[Any]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        shown = None
        todo = iter(seconds)
        wanted = next(todo, None)
        for frame in container.decode(stream):
            while wanted is not None and frame.time is not None and frame.time > wanted + 1e-6:
                found.append((shown or frame).to_ndarray(format="rgb24"))
                wanted = next(todo, None)
            if wanted is None:
                break
            shown = frame
        if shown is not None and wanted is not None:
            found += [shown.to_ndarray(format="rgb24")] * (1 + len(list(todo)))
    return found


def opencv_frames() -> Callable[[Path, Sequence[float]], list[Any]] | None:
    """The same with OpenCV, reading on to each frame; None where it is not installed."""
    if not OPENCV.installed:
        return None
    cv2: Any = import_module("cv2")

    def read(path: Path, seconds: Sequence[float]) -> list[Any]:
        video = cv2.VideoCapture(str(path))
        rate = video.get(cv2.CAP_PROP_FPS)
        found, number, wanted = [], 0, [int(second * rate + 1e-6) for second in seconds]
        for place in wanted:
            while number <= place and video.grab():
                number += 1
            fine, image = video.retrieve()
            if fine:
                found.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        video.release()
        return found

    return read


def torchcodec_frames(note: Note) -> Callable[[Path, Sequence[float]], list[Any]] | None:
    """The same with torchcodec, which looks for FFmpeg's libraries in the system.

    Args:
        note: is told why it cannot be loaded.

    Returns:
        None where it is not installed or cannot be loaded.
    """
    if not TORCHCODEC.installed:
        return None
    with trying(TORCHCODEC, note):
        decoders: Any = import_module("torchcodec.decoders")

        def read(path: Path, seconds: Sequence[float]) -> list[Any]:
            # As many threads as FFmpeg likes, as all others have; by itself it takes one.
            decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=0)
            return list(decoder.get_frames_played_at(list(seconds)).data.numpy())

        return read
    return None


def image_towers(
    shape: TowerShape, weights: Weights, note: Note, *, device: str, half: bool
) -> dict[str, Callable[[Any], npt.NDArray[np.float32]]]:
    """An image tower by torch where it is installed, and on a GPU compiled as well, by name.

    Args:
        shape: of the tower.
        weights: of it.
        note: is told of one that failed.
        device: as torch names it.
        half: in float16.

    Returns:
        Pixels (images, 3, side, side) on the device to embeddings on the host.
    """
    found: dict[str, Callable[[Any], npt.NDArray[np.float32]]] = {}
    for compiled in (False, True) if device != "cpu" else (False,):
        if not TOWER.installed:
            continue
        with trying(TOWER, note):
            import torch

            tower = torch_tower(shape, weights, device, half=half, compiled=compiled)
            name = f"{TOWER.name}, compiled" if compiled else TOWER.name
            found[name] = lambda pixels, tower=tower: tower(torch.from_dlpack(pixels))  # type: ignore[misc]
    return found
