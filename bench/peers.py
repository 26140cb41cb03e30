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

from granalign_fast.models import one_line

from .random_clip import TowerShape, Weights, torch_tower

Embed = Callable[[list[str]], npt.NDArray[Any]]
Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts and a number of new tokens to the new tokens of each, greedy, none ending early."""
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
        return all(find_spec(module) is not None for module in self.modules)


_ST = "sentence_transformers"
TORCH_KERNELS = Peer("torch", "kernels", ("torch",), "torch")
ST_TORCH = Peer("sentence-transformers", "encoders", (_ST,), "sentence-transformers")
ST_ONNX = Peer(
    *("sentence-transformers, ONNX", "encoders", (_ST, "optimum.onnxruntime")),
    "sentence-transformers optimum-onnx[onnxruntime]",
)
ST_OPENVINO = Peer(
    *("sentence-transformers, OpenVINO", "encoders", (_ST, "openvino", "optimum.intel")),
    "sentence-transformers optimum-intel[openvino]",
)
OPENCV = Peer("OpenCV", "decode", ("cv2",), "opencv-python-headless")
TORCHCODEC = Peer("torchcodec", "decode", ("torch", "torchcodec"), "torchcodec")
TRANSFORMERS = Peer("transformers", "generation", ("torch", "transformers"), "transformers torch")
COMPILED = Peer(
    "transformers, compiled", "generation", ("torch", "transformers"), "transformers torch"
)
STOCK = Peer(
    *("stock optimum export", "generation", ("torch", "transformers", "optimum.onnxruntime")),
    "optimum-onnx[onnxruntime] transformers torch",
)
GENAI = Peer(
    *("onnxruntime-genai", "generation", ("onnxruntime_genai", "torch", "transformers")),
    "onnxruntime-genai transformers torch",
)
TOWER = Peer("torch", "shapes", ("torch",), "torch")
PEERS = (
    *(TOWER, TORCH_KERNELS, ST_TORCH, ST_ONNX, ST_OPENVINO, OPENCV, TORCHCODEC),
    *(TRANSFORMERS, COMPILED, STOCK, GENAI),
)


def _installed(peer: Peer) -> bool:
    try:
        return peer.installed
    except (ImportError, ValueError):  # a parent package that is broken, or is not one
        return False


def absent() -> dict[str, str]:
    """Peers that are not installed, and the command that brings each."""
    return {
        f"{peer.name} ({peer.suite})": f"pip install {peer.brings}"
        for peer in PEERS
        if not _installed(peer)
    }


@contextlib.contextmanager
def _trying(peer: Peer, note: Note) -> Iterator[None]:
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
    from granalign_fast.export.folder import quiet

    found: dict[str, Embed] = {}
    if device != "cpu":
        for kind in ("", ", fp16", ", fp16 compiled") if _installed(ST_TORCH) else ():
            with _trying(ST_TORCH, note), quiet():
                found[f"{ST_TORCH.name}{kind}"] = _embedder(model, "torch", device, kind)
        return found
    for peer, backend in ((ST_TORCH, "torch"), (ST_ONNX, "onnx"), (ST_OPENVINO, "openvino")):
        if not _installed(peer):
            continue
        with _trying(peer, note), quiet():
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

    model: Any = SentenceTransformer(str(folder), device=device, backend=backend)
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
    `(queries, clips, dim)`, and gives `(queries, variants, clips)` float32 on the host.
    """
    if not _installed(TORCH_KERNELS):
        return None
    import torch

    def run(given: tuple[Any, Any]) -> Any:
        variants, clips = (torch.as_tensor(array, device=device) for array in given)
        with torch.inference_mode():
            cosines = torch.bmm(variants, clips.transpose(1, 2))
            low = cosines.amin(dim=2, keepdim=True)
            span = (cosines.amax(dim=2, keepdim=True) - low).clamp_min(1e-5)
            return ((cosines - low) / span).pow(power).cpu().numpy()

    return run


def every_frame(path: Path, seconds: Sequence[float]) -> list[npt.NDArray[Any]]:
    """The frames shown at these times, by decoding all of a video with PyAV, as scripts do."""
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
            shown = frame
        if shown is not None and wanted is not None:
            found += [shown.to_ndarray(format="rgb24")] * (1 + len(list(todo)))
    return found


def opencv_frames() -> Callable[[Path, Sequence[float]], list[Any]] | None:
    """The same with OpenCV, reading on to each frame; None where it is not installed."""
    if not _installed(OPENCV):
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


def torchcodec_frames() -> Callable[[Path, Sequence[float]], list[Any]] | None:
    """The same with torchcodec; None where it is not installed or cannot be loaded."""
    if not _installed(TORCHCODEC):
        return None
    try:
        decoders: Any = import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        return None

    def read(path: Path, seconds: Sequence[float]) -> list[Any]:
        decoder = decoders.VideoDecoder(str(path), dimension_order="NHWC")
        return list(decoder.get_frames_played_at(list(seconds)).data.numpy())

    return read


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
        Pixels (images, 3, side, side), float32 on the device, to embeddings on the host.
    """
    found: dict[str, Callable[[Any], npt.NDArray[np.float32]]] = {}
    for compiled in (False, True) if device != "cpu" else (False,):
        if not _installed(TOWER):
            continue
        with _trying(TOWER, note):
            import torch

            tower = torch_tower(shape, weights, device, half=half, compiled=compiled)
            name = f"{TOWER.name}, compiled" if compiled else TOWER.name
            found[name] = lambda pixels, tower=tower: tower(torch.from_dlpack(pixels))  # type: ignore[misc]
    return found


def generators(
    source: Path, scratch: Path, note: Note, *, compiled: bool, device: str = "cpu"
) -> dict[str, Generate]:
    """Greedy generation by the peers that are installed, by name; on a GPU those of torch.

    Args:
        source: a transformers folder of a language model.
        scratch: where exports go.
        note: is told of one that failed.
        compiled: whether `torch.compile` takes part, which takes minutes on a CPU.
        device: as torch names it.
    """
    from granalign_fast.export.folder import quiet

    found: dict[str, Generate] = {}
    if _installed(TRANSFORMERS):
        with _trying(TRANSFORMERS, note), quiet():
            found[TRANSFORMERS.name] = greedy(transformers_model(source, device))
        if compiled:
            with _trying(COMPILED, note), quiet():
                import torch

                model = transformers_model(source, device)
                model.forward = torch.compile(model.forward, dynamic=True)
                generate = greedy(model)
                generate([[1, 2, 3]], 2)
                found[COMPILED.name] = generate
    if device != "cpu":
        return found
    if _installed(STOCK):
        with _trying(STOCK, note), quiet():
            found[STOCK.name] = greedy(stock_export(source, scratch / "stock"))
    if _installed(GENAI):
        with _trying(GENAI, note), quiet():
            found[GENAI.name] = _genai(source, scratch / "genai")
    return found


def transformers_model(source: Path, device: str = "cpu", dtype: str = "float32") -> Any:
    """The language model of a folder, by transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(source, dtype=dtype).eval().to(device)


def stock_export(source: Path, out: Path) -> Any:
    """The same by optimum's own export, which it writes to `out`."""
    from optimum.exporters.onnx import main_export
    from optimum.onnxruntime import ORTModelForCausalLM
    from optimum.utils import logging

    logging.set_verbosity_error()
    main_export(str(source), out, task="text-generation-with-past", do_validation=False)
    return ORTModelForCausalLM.from_pretrained(out)


def greedy(model: Any) -> Generate:
    """`generate` of transformers or optimum, greedy, never stopping early."""
    import torch

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=getattr(model, "device", None))
        with torch.inference_mode():
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens: list[list[int]] = found[:, ids.shape[1] :].tolist()
        return tokens

    return run


def _genai(source: Path, out: Path) -> Generate:
    """onnxruntime-genai over the fp32 export of its own model builder."""
    builder: Any = import_module("onnxruntime_genai.models.builder")
    genai: Any = import_module("onnxruntime_genai")
    builder.create_model(None, str(source), str(out), "fp32", "cpu", str(out / "cache"))
    model = genai.Model(str(out))

    def run(prompts: list[list[int]], count: int) -> list[list[int]]:
        options = genai.GeneratorParams(model)
        length = len(prompts[0]) + count
        options.set_search_options(
            max_length=length, min_length=length, do_sample=False, batch_size=len(prompts)
        )
        generator = genai.Generator(model, options)
        generator.append_tokens(np.array(prompts, np.int32))
        for _ in range(count):
            generator.generate_next_token()
        return [generator.get_sequence(row)[-count:].tolist() for row in range(len(prompts))]

    return run
