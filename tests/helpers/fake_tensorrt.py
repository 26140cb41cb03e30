"""A stand-in for the part of TensorRT that this package uses: an engine is an ONNX model.

ONNX Runtime runs it on the CPU. Names and parameters are those of TensorRT's bindings 10.16 and
11.4, and numbers of flags those of 10.16 (`test_tensorrt_bindings` compares them). The stand-in
enforces TensorRT's rules: strong typing, shapes within profiles, the order of calls, and which runs
may be captured.
"""

from __future__ import annotations

import ctypes
import enum
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from helpers import fake_cupy

__version__ = "10.16.1.11"
NEWEST = "11.4.0.106"
"""The other version whose bindings are compared."""

BUILT: list[tuple[list[str], int]] = []
"""For every build, the names of the configuration's flags, and the network's flags."""


class DataType(enum.IntEnum):
    FLOAT, HALF, INT32, INT64, UINT8 = 0, 1, 3, 8, 5


class BuilderFlag(enum.IntEnum):
    TF32 = 6  # FP16 and BF16 are gone in version 11


class NetworkDefinitionCreationFlag(enum.IntEnum):
    STRONGLY_TYPED = 1


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class ExecutionContextAllocationStrategy(enum.IntEnum):
    USER_MANAGED = 2


_NUMPY = {
    DataType.FLOAT: np.float32,
    DataType.HALF: np.float16,
    DataType.INT32: np.int32,
    DataType.INT64: np.int64,
    DataType.UINT8: np.uint8,
}


def nptype(trt_type: DataType) -> type:
    return _NUMPY[trt_type]


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class IHostMemory(bytes):
    pass


class ITimingCache:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._data + b"timed;")


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True)):
            raise ValueError(f"{input}: {min}, {opt}, {max}")
        self._shapes[input] = [list(min), list(opt), list(max)]


class IBuilderConfig:
    def __init__(self) -> None:
        self._flags = {BuilderFlag.TF32}
        self._profiles: list[dict[str, list[list[int]]]] = []
        self._cache: ITimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._data.startswith(b"other"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self._cache


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self._flags, self._model = flags, None
        self._parser: Any = lambda: None


class Builder:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition(flags)

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        model = network._model
        assert model is not None and config._profiles, "the network and its profiles come first"
        assert network._parser() is not None, "the parser owns the weights and must be alive"
        names = {value.name for value in model.graph.input}
        typed = network._flags & 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        wrong = ""
        if not typed and __version__.startswith("10."):
            wrong = "a weakly typed network, which version 11 does not have"
        if any(set(profile) != names for profile in config._profiles):
            wrong = "a dynamic input lacks its shapes"
        if wrong:
            self._logger.log(ILogger.Severity.ERROR, wrong)
            return None
        BUILT.append((sorted(flag.name for flag in config._flags), network._flags))
        head = json.dumps(config._profiles).encode()
        return IHostMemory(b"PLAN" + head + b"\n" + model.SerializeToString())


class ParserError:
    def __init__(self, operator: str, name: str, desc: str) -> None:
        self._operator, self._name, self._desc = operator, name, desc

    def node_operator(self) -> str:
        return self._operator

    def node_name(self) -> str:
        return self._name

    def desc(self) -> str:
        return self._desc


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network = network
        network._parser = weakref.ref(self)
        self._errors: list[ParserError] = []

    def parse(self, model: bytes, path: str | None = None) -> bool:
        graph = onnx.load_model_from_string(model)
        onnx.load_external_data_for_model(graph, str(Path(path or "").parent))
        uint8 = onnx.TensorProto.UINT8
        bytes_in = {v.name for v in graph.graph.input if v.type.tensor_type.elem_type == uint8}
        for node in graph.graph.node:
            if node.domain:
                self._fail(node, f"no importer for\n{node.domain}")
            if bytes_in & set(node.input) and node.op_type != "Cast":
                self._fail(node, "UINT8 can only be cast")
        self._network._model = graph
        return not self._errors

    def _fail(self, node: Any, desc: str) -> None:
        self._errors.append(ParserError(node.op_type, node.name, desc))

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        if not serialized_engine.startswith(b"PLAN"):
            self._logger.log(ILogger.Severity.ERROR, "magic tag\ndoes not match")
            return None
        head, _, model = serialized_engine[4:].partition(b"\n")
        return ICudaEngine(json.loads(head), model)


_KINDS = {
    "tensor(float)": DataType.FLOAT,
    "tensor(float16)": DataType.HALF,
    "tensor(int32)": DataType.INT32,
    "tensor(int64)": DataType.INT64,
    "tensor(uint8)": DataType.UINT8,
}


class ICudaEngine:
    def __init__(self, profiles: list[dict[str, list[list[int]]]], model: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._profiles = profiles
        self._nodes = {node.name: node for node in self._session.get_inputs()}
        self._inputs = list(self._nodes)
        self._nodes |= {node.name: node for node in self._session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self._nodes)

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def get_tensor_name(self, index: int) -> str:
        return list(self._nodes)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return _KINDS[self._nodes[name].type]

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> IExecutionContext:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        return IExecutionContext(self)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._profile: dict[str, list[list[int]]] | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._memory = self._ran = False

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = self._engine._profiles[profile_index]
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        if self._profile is None:
            return False
        low, _, high = self._profile[name]
        self._shapes[name] = tuple(shape)
        self._ran = False
        return len(low) == len(shape) and all(
            a <= size <= b for a, size, b in zip(low, shape, high, strict=True)
        )

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        assert set(self._shapes) == set(self._engine._inputs), "the shapes of all inputs come first"
        outputs = self._run({n: np.zeros(s, self._dtype(n)) for n, s in self._shapes.items()})
        self._shapes |= {output: array.shape for output, array in outputs.items()}
        return self._shapes[name]

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return memory != 0

    def set_device_memory(self, memory: int, size: int) -> None:
        self._memory = memory != 0 and size >= self._engine.device_memory_size_v2

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not self._memory or set(self._addresses) != set(self._engine._nodes):
            return False
        stream = fake_cupy.Stream.by_handle[stream_handle]
        if stream.captured is not None:
            assert self._ran, "a new shape must run once before it is captured"
            stream.captured.append(self._compute)
            return True
        fake_cupy.LOG.append(f"execute {stream_handle}")
        self._ran = True
        self._compute()
        return True

    def _compute(self) -> None:
        outputs = self._run({name: self._array(name) for name in self._engine._inputs})
        for name, array in outputs.items():
            self._array(name)[...] = array

    def _run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [name for name in self._engine._nodes if name not in self._engine._inputs]
        return dict(zip(names, self._engine._session.run(names, arrays), strict=True))

    def _array(self, name: str) -> np.ndarray:
        """Return the memory at a tensor's address, as an array of its current shape."""
        shape, dtype = self.get_tensor_shape(name), np.dtype(self._dtype(name))
        count = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_uint8 * count).from_address(self._addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)

    def _dtype(self, name: str) -> type:
        return nptype(self._engine.get_tensor_dtype(name))
