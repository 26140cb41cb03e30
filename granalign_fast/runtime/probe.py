"""Check that a device works: run a model of one node, and kernels whose results are known."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from granalign_fast.errors import GranAlignError, MissingExtraError, one_line
from granalign_fast.runtime.session import open_session


def probe_session(device: str) -> str:
    """Let ONNX Runtime add numbers on a device.

    Returns:
        The name of the provider that ran the model.

    Raises:
        GranAlignError: the device cannot run it, or the sums are wrong.
        MissingExtraError: the packages for the device are not installed.
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
    numbers = np.arange(5, dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.onnx"
        onnx.save(model, path)
        session = open_session(path, device=device)
        sums = session(x=numbers)["y"]
    if not np.array_equal(sums, 2 * numbers):
        raise GranAlignError(
            f"device {device!r}: got {sums}, expected {2 * numbers}; reinstall the driver"
        )
    return session.backend


def probe_kernels(index: int) -> str:
    """Compile the kernels that search a library for a GPU, run them and check their results.

    Returns:
        A line that names the architecture they were compiled for.

    Raises:
        GranAlignError: CuPy cannot compile or run them, or their results are wrong.
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
            for count in (1, 9):  # few and many queries run different kernels
                queries = rng.integers(-1, 2, (count, 8)).astype(np.float16)
                top = corpus(cupy.asarray(queries), cupy.asarray(clips), k=5)
                right = cupy.asnumpy(top.rows) == corpus(queries, clips, k=5).rows
                if not right.all():
                    raise GranAlignError(
                        f"GPU {index}: {np.mean(~right):.0%} of the results of {count} queries are "
                        f"wrong"
                    )
            architecture = str(device.compute_capability)
    except GranAlignError:
        raise
    except Exception as error:  # CuPy's, the compiler's and the driver's errors have no base
        raise GranAlignError(f"GPU {index}: {one_line(error)}") from None
    return f"compiled for sm_{architecture}, results right"
