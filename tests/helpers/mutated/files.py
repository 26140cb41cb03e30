"""Change files at random: their bytes, or what is written in them."""

from __future__ import annotations

import functools
import gzip
import io
import json
import random
from collections.abc import Callable
from typing import Any

from helpers.fuzz_videos import ANYWHERE

from .values import NUMBERS, PATHS, TEXTS, changed, dumped

MOST_BYTES = 1 << 22
"""Bytes of a mutated file; longer ones are cut."""


def mutated(rng: random.Random, name: str, data: bytes, other: bytes) -> bytes:
    """Return changed content of a file.

    Args:
        rng: the source of all choices.
        name: of the file; its suffix tells what it holds.
        data: what it holds.
        other: the content of another file, from which a part can be taken.
    """
    suffix = name.rpartition(".")[2]
    choice = rng.random()
    if suffix == "gz" and choice < 0.1:
        return _bomb(*rng.choice(_BOMBS))
    if suffix == "gz" and choice < 0.7:
        inner = mutated(rng, name.removesuffix(".gz"), gzip.decompress(data), other)
        return gzip.compress(inner, 1, mtime=0)
    by_content = _BY_SUFFIX.get(suffix)
    if by_content is not None and rng.random() < 0.6:
        return by_content(rng, data)[:MOST_BYTES]
    return _bytes(rng, data, other)[:MOST_BYTES]


_BOMBS = ((b" ", b""), (b"\n", b""), (b"{}\n", b""), (b'"a",', b"1]"), (b"x", b""))
"""The parts that a long text repeats, and its end: one line, many lines, one value."""


@functools.cache
def _bomb(part: bytes, end: bytes) -> bytes:
    """Return a short gzip file of a long text."""
    return gzip.compress((b"[" if end else b"") + part * (1 << 24) + end, 6, mtime=0)


def _bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    if len(data) < 2:
        return rng.randbytes(rng.randrange(40))
    kind = rng.randrange(8)
    if kind == 0:  # a part of another file
        begin, at = rng.randrange(len(other) + 1), rng.randrange(len(data))
        part = other[begin : begin + rng.choice((4, 50, 2000))]
        return data[:at] + part + data[at + rng.choice((0, len(part))) :]
    if kind == 1:  # a number, as lengths and offsets are written
        changed_data = bytearray(data)
        for _ in range(rng.choice((1, 1, 3))):
            size = rng.choice((1, 2, 4, 8))
            at = rng.randrange(max(len(data) - size, 0) + 1)
            value = rng.choice((0, 1, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), 2**7, 2**20 - 1))
            order = rng.choice(("little", "big"))
            changed_data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, order)
        return bytes(changed_data)
    # The ends of a file hold lengths and tables more often than its middle.
    low, high = rng.choice(
        ((0, len(data)), (0, min(len(data), 300)), (len(data) * 9 // 10, len(data)))
    )
    if high - low < 1:
        low, high = 0, len(data)
    return rng.choice(ANYWHERE)(rng, bytearray(data), low, high)


def _json(rng: random.Random, data: bytes) -> bytes:
    return dumped(changed(rng, json.loads(data))).encode("utf-8", "surrogatepass")


def _json_lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.decode().splitlines()
    at = rng.randrange(len(lines))
    choice = rng.randrange(6)
    if choice < 4:
        lines[at] = dumped(changed(rng, json.loads(lines[at])))
    elif choice == 4:
        lines.insert(at, rng.choice(("", "null", "[]", "{}", "NaN", lines[at], "\ufeff{}", "{")))
    else:
        lines[at] *= rng.choice((2, 1000))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def _text(rng: random.Random, data: bytes) -> bytes:
    text = data.decode()
    for _ in range(rng.choice((1, 2, 4))):
        at = rng.randrange(len(text) + 1)
        to = min(len(text), at + rng.choice((0, 1, 5, 40)))
        taken = rng.randrange(len(text) + 1)
        text = (
            text[:at]
            + rng.choice(
                (
                    rng.choice(TEXTS),
                    str(rng.choice(NUMBERS[:20])),
                    text[taken : taken + 30],
                    text[at:to] * 3,
                    "",
                )
            )
            + text[to:]
        )
    return text.encode("utf-8", "surrogatepass")


_TEMPLATE_PARTS = (
    "{{ 'a' * 10**9 }}",
    "{{ messages[0].role * 10**9 }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(100000) %}x{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ 9**9**9 }}",
    "{{ 'x' | center(10**9) }}",
    "{{ '%1000000000d' | format(1) }}",
    "{{ '{:1000000000d}'.format(1) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch /nonexistent/x') }}",
    "{{ messages | tojson(indent=10**8) }}",
    "{% set x = namespace(a='a') %}{% for i in range(40) %}{% set x.a = x.a + x.a %}{% endfor %}",
    "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "{% include '../../outside/secret.json' %}",
    "{{ raise_exception('no\\n' * 5000) }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ messages[9].content }}",
    "{{ undefined.more }}",
    "{% break %}",
    "{{ '\\ud800' }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if a %}" * 500 + "{% endif %}" * 500,
    "{{ " + "-" * 20000 + "1 }}",
    "{{ messages | sort | unique | list }}",
    "{{ 'a,' * 5000000 | length }}",
    "{{ ('a,' * 100000).split(',') | join('b' * 1000) }}",
    "{{ ('a' * 10000).replace('a', 'b' * 100000) }}",
)


def _template(rng: random.Random, data: bytes) -> bytes:
    if rng.random() < 0.4:
        return _text(rng, data)
    text = data.decode()
    at = rng.choice([0, len(text), *(i for i, c in enumerate(text) if text[i : i + 2] == "{%")])
    return (text[:at] + rng.choice(_TEMPLATE_PARTS) + text[at:]).encode()


def _safetensors(rng: random.Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    header, tensors = json.loads(data[8 : 8 + size]), data[8 + size :]
    text = dumped(changed(rng, header)).encode("utf-8", "surrogatepass")
    length = len(text) if rng.random() < 0.9 else rng.choice((0, size, 2**63, 2**64 - 1, 2**27))
    return length.to_bytes(8, "little") + text + tensors


def _parquet(rng: random.Random, data: bytes) -> bytes:
    """Write the table again, with another content or schema, or in another way."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(io.BytesIO(data))
    number = rng.randrange(table.num_columns)
    name, rows = table.column_names[number], table.num_rows
    columns: list[Callable[[], Any]] = [
        lambda: pa.nulls(rows),
        lambda: pa.nulls(rows, table.schema.field(number).type),
        lambda: pa.array([float(rng.choice(NUMBERS[:17])) for _ in range(rows)]),
        lambda: pa.array([rng.randrange(-5, 2**40) for _ in range(rows)], pa.int64()),
        lambda: pa.array([rng.choice(TEXTS).replace("\ud800", "") for _ in range(rows)]),
        lambda: pa.array([b"\xff\xfe" for _ in range(rows)], pa.binary()),
        lambda: pa.array([[["a"] * 3] for _ in range(rows)]),
        lambda: pa.array([{"a": 1} for _ in range(rows)]),
        lambda: pa.array(["a" * 2000] * rows).dictionary_encode(),
        lambda: pa.array([0] * rows, pa.timestamp("ns")),
        lambda: pa.array([True] * rows),
        lambda: table.column(rng.randrange(table.num_columns)),
    ]
    choice = rng.randrange(8)
    if choice < 4:
        table = table.set_column(number, name, rng.choice(columns)())
    elif choice == 4:
        table = table.drop_columns([name])
    elif choice == 5:
        table = table.append_column(rng.choice((name, "more", "", "a.b")), table.column(number))
    elif choice == 6:
        table = table.slice(0, rng.choice((0, 1))) if rng.random() < 0.5 else _repeated(table, rng)
    else:
        order = list(range(rows))
        rng.shuffle(order)
        table = table.take(order)
    sink = io.BytesIO()
    options: dict[str, Any] = {"compression": rng.choice(("none", "snappy", "zstd", "gzip"))}
    parquet.write_table(table, sink, use_dictionary=rng.random() < 0.5, **options)
    written = sink.getvalue()
    # A count in the footer, which announces rows and bytes.
    return _bytes(rng, written, written) if rng.random() < 0.2 else written


def _repeated(table: Any, rng: random.Random) -> Any:
    """Return the rows many times: a few bytes of run lengths stand for them."""
    import pyarrow as pa

    count = rng.choice((10, 1000, 100_000)) * max(table.num_rows, 1)
    return table.take(pa.array([0] * count)) if table.num_rows else table


def _onnx(rng: random.Random, data: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    for _ in range(rng.choice((1, 1, 2, 4))):
        choice = rng.randrange(9)
        node = rng.choice(graph.node)
        tensor = rng.choice(graph.initializer) if graph.initializer else None
        if choice == 0:
            node.op_type = rng.choice(("Loop", "If", "Expand", "Tile", "Range", "MatMul", "X", ""))
        elif choice == 1 and node.attribute:
            attribute = rng.choice(node.attribute)
            attribute.i = rng.choice((-1, 0, 2**31, 2**62))
            attribute.ints[:] = [rng.choice((-1, 0, 7, 2**62)) for _ in range(3)]
        elif choice == 2 and tensor is not None and tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((-1, 0, 1, 2**31, 2**62))
        elif choice == 3 and tensor is not None:
            tensor.data_location = 1
            tensor.external_data.add(key="location", value=rng.choice(PATHS))
        elif choice == 4:
            node.input[:] = [rng.choice(graph.node).output[0] for _ in node.input]
        elif choice == 5:
            graph.node.remove(node)
            if not graph.node:
                break
        elif choice == 6 and tensor is not None:
            tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]
        elif choice == 7:
            value = rng.choice([*graph.input, *graph.output])
            value.type.tensor_type.elem_type = rng.choice((1, 7, 8, 10, 99))
            value.type.tensor_type.shape.dim.add().dim_value = rng.choice((-1, 3, 2**40))
        else:
            copied = graph.node.add()
            copied.CopyFrom(node)
    return bytes(model.SerializeToString())


_BY_SUFFIX: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "json": _json,
    "jsonl": _json_lines,
    "txt": _text,
    "csv": _text,
    "jinja": _template,
    "safetensors": _safetensors,
    "parquet": _parquet,
    "onnx": _onnx,
}
