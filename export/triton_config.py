"""Model configurations of Triton: `config.pbtxt`, written from a typed structure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from granalign_fast.errors import GranAlignError

Value: TypeAlias = "str | int | bool | Word | Mapping[str, Value] | list[Value]"
"""A value of protobuf's text format; a list stands for a repeated field."""


class Word(str):
    """A value without quotes, such as the name of an enumeration's member."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of a model.

    Attributes:
        name: of the tensor.
        kind: Triton's name of the type, such as ``TYPE_FP32``.
        dims: the shape without the batch; -1 for any size.
        optional: whether a request may leave the input out.
    """

    name: str
    kind: str
    dims: tuple[int, ...]
    optional: bool = False

    def record(self) -> Mapping[str, Value]:
        """Return the fields of the tensor."""
        fields: dict[str, Value] = {"name": self.name, "data_type": Word(self.kind)}
        fields["dims"] = list(self.dims)
        return fields | ({"optional": True} if self.optional else {})


@dataclass(frozen=True)
class Instances:
    """How many instances of a model run, and where.

    Attributes:
        count: of instances; on GPUs, of each GPU.
        gpus: numbers of the GPUs; empty for the CPU.
    """

    count: int = 1
    gpus: tuple[int, ...] = ()

    def record(self) -> Mapping[str, Value]:
        """Return the fields of the instance group."""
        fields: dict[str, Value] = {"count": self.count}
        fields["kind"] = Word("KIND_GPU" if self.gpus else "KIND_CPU")
        if self.gpus:
            fields["gpus"] = list(self.gpus)
        return fields


@dataclass(frozen=True)
class Batching:
    """How Triton joins requests into batches.

    Attributes:
        delay_us: microseconds that a request waits for others.
        preferred: batch sizes that are sent without that wait.
        waiting: most requests that wait; further ones are refused. 0 for any number.
        timeout_us: microseconds after which a request that waits is refused; 0 for never.
    """

    delay_us: int = 500
    preferred: tuple[int, ...] = ()
    waiting: int = 0
    timeout_us: int = 0

    def record(self) -> Mapping[str, Value]:
        """Return the fields of the dynamic batcher."""
        fields: dict[str, Value] = {}
        if self.preferred:
            fields["preferred_batch_size"] = list(self.preferred)
        fields["max_queue_delay_microseconds"] = self.delay_us
        if self.waiting or self.timeout_us:
            fields["default_queue_policy"] = {
                "timeout_action": Word("REJECT"),
                "default_timeout_microseconds": self.timeout_us,
                "max_queue_size": self.waiting,
            }
        return fields


@dataclass(frozen=True)
class ModelConfig:
    """The configuration of one model in a repository.

    Attributes:
        name: of the model and of its folder.
        backend: ``onnxruntime`` or ``python``.
        max_batch: most rows of a batch.
        inputs: of the model.
        outputs: of the model.
        instances: how many run, and where.
        batching: how requests are joined.
        file: the model's file in the folder of its version.
        parameters: texts that the back end or the Python model reads.
        accelerator: parameters of ONNX Runtime's TensorRT provider; None to run without it.
    """

    name: str
    backend: str
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    instances: Instances = Instances()
    batching: Batching = Batching()
    file: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    accelerator: Mapping[str, str] | None = None

    def to_text(self) -> str:
        """Return the content of ``config.pbtxt``.

        Raises:
            GranAlignError: a text is not valid Unicode.
        """
        record: dict[str, Value] = {"name": self.name, "backend": self.backend}
        if self.file is not None:
            record["default_model_filename"] = self.file
        record["max_batch_size"] = self.max_batch
        record["input"] = [tensor.record() for tensor in self.inputs]
        record["output"] = [tensor.record() for tensor in self.outputs]
        record["instance_group"] = [self.instances.record()]
        record["dynamic_batching"] = self.batching.record()
        record["parameters"] = [
            {"key": key, "value": {"string_value": value}} for key, value in self.parameters.items()
        ]
        if self.accelerator is not None:
            entries: list[Value] = [
                {"key": key, "value": value} for key, value in self.accelerator.items()
            ]
            tensorrt: Mapping[str, Value] = {"name": "tensorrt", "parameters": entries}
            record["optimization"] = {
                "execution_accelerators": {"gpu_execution_accelerator": [tensorrt]}
            }
        return "".join(f"{line}\n" for line in _lines(record))


def _lines(record: Mapping[str, Value], indent: str = "") -> Iterator[str]:
    """Yield a message in protobuf's text format, line by line."""
    for name, value in record.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, Mapping):
                yield f"{indent}{name} {{"
                yield from _lines(one, indent + "  ")
                yield f"{indent}}}"
            else:
                yield f"{indent}{name}: {_scalar(one)}"


def _scalar(value: Value) -> str:
    if isinstance(value, Word):
        return value
    if isinstance(value, str):
        return _quoted(value)
    return str(value).lower()


def _quoted(text: str) -> str:
    """Return a text in quotes; bytes that are not printable ASCII are octal."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        raise GranAlignError(
            f"{text!a:.200}: not valid Unicode, which Triton's configuration needs; rename the file"
        ) from None
    shown = (
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "\"\\'" else f"\\{byte:03o}"
        for byte in data
    )
    return f'"{"".join(shown)}"'
