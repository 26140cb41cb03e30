"""Does a GPU do what a search asks of it? A model of one node, and kernels with known results."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.runtime.session import open_session


def probe_session(device: str) -> str:
    """Have ONNX Runtime add numbers on a device: what did it.

    Raises:
        GranAlignError: it cannot, or the sums are wrong.
        MissingExtraError: it has no such device.
    """
    import onnx
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        "probe",
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
    )
    opset = [helper.make_opsetid("", 14)]  # old enough for every ONNX Runtime
    model = helper.make_model(graph, ir_version=8, opset_imports=opset)
    given = np.arange(5, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, path)
        session = open_session(path, device=device)
        found = session(x=given)["y"]
    if not np.array_equal(found, 2 * given):
        raise GranAlignError(
            f"device {device!r}: got {found} for {2 * given}; install the driver anew"
        )
    return session.backend


def probe_kernels(index: int) -> str:
    """Compile and run the search of a library on a GPU: for which architecture.

    Raises:
        GranAlignError: CuPy cannot compile or run them, or what they found is wrong.
        MissingExtraError: CuPy is not installed.
    """
    try:
        import cupy
    except ImportError:
        raise MissingExtraError("the kernels", "cuda") from None
    from granalign_fast.kernels import corpus

    rng = np.random.default_rng(0)
    clips = rng.integers(-1, 2, (300, 8)).astype(np.float16)
    try:
        device = cupy.cuda.Device(index)
        with device:
            for count in (1, 9):  # each goes another way
                queries = rng.integers(-1, 2, (count, 8)).astype(np.float16)
                found = corpus(cupy.asarray(queries), cupy.asarray(clips), k=5)
                right = cupy.asnumpy(found.rows) == corpus(queries, clips, k=5).rows
                if not right.all():
                    raise GranAlignError(
                        f"GPU {index}: {np.mean(~right):.0%} of what {count} queries found is wrong"
                    )
            architecture = str(device.compute_capability)
    except GranAlignError:
        raise
    except Exception as error:  # whatever CuPy, the compiler and the driver make of it
        raise GranAlignError(f"GPU {index}: {one_line(error)}") from None
    return f"compiled for sm_{architecture}, results right"
