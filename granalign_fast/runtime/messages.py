"""Messages between a program and its worker processes, over a socket.

A worker that has read a hostile file may send anything. So nothing that it sends is unpickled: a
message is JSON, and the bytes of arrays. Its length is bounded, and each wait has an end.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.parsing.json_values import parse_json

_LENGTH = 8
"""Bytes that state the length of a message, and of its JSON."""
_BUFFER = "$buffer"
"""The key of an object that stands for an array or for bytes."""
_DTYPE = re.compile(r"[<>|][biufc][0-9]{1,2}")
_CHUNK = 1 << 20


class MalformedMessage(Exception):
    """A message cannot be read: it is no JSON of ours, or longer than its bound."""


def encode(value: object) -> bytes:
    """Return a value as a message.

    Args:
        value: None, a bool, a number, a text, a path, bytes, an array of numbers or bools; lists,
            tuples and dictionaries of these. Keys are texts.

    Raises:
        TypeError: it is something else.
    """
    buffers: list[bytes | memoryview] = []
    text = json.dumps(_plain(value, buffers)).encode()
    return b"".join([len(text).to_bytes(_LENGTH, "little"), text, *buffers])


def _plain(value: object, buffers: list[bytes | memoryview]) -> object:
    """Return a value that JSON holds; bytes and arrays are appended to `buffers`."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        buffers.append(value)
        return {_BUFFER: [len(value)]}
    if isinstance(value, np.generic):
        value = np.asarray(value)
        if _DTYPE.fullmatch(value.dtype.str):
            return value.item()
    if isinstance(value, np.ndarray) and _DTYPE.fullmatch(value.dtype.str):
        buffers.append(np.ascontiguousarray(value).tobytes())
        return {_BUFFER: [value.nbytes, value.dtype.str, list(value.shape)]}
    if isinstance(value, list | tuple):
        return [_plain(item, buffers) for item in value]
    if isinstance(value, dict) and _BUFFER not in value and all(isinstance(k, str) for k in value):
        return {key: _plain(item, buffers) for key, item in value.items()}
    raise TypeError(
        f"got a {type(value).__name__}, expected None, a number, a text, bytes, an array, or lists "
        f"and dictionaries of them"
    )


def decode(message: bytes | bytearray) -> Any:
    """Return the value of a message of `encode`; tuples are lists, and paths are texts.

    Raises:
        MalformedMessage: the message is not one.
    """
    view = memoryview(message)
    end = _LENGTH + int.from_bytes(view[:_LENGTH], "little")
    try:
        plain = parse_json(bytes(view[_LENGTH:end]))
        return _restored(plain, _Buffers(view[end:]))
    # A wrong shape, length or type of number raises one of these.
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise MalformedMessage(type(error).__name__) from None


class _Buffers:
    """The bytes behind the JSON of a message, taken one stretch after another."""

    def __init__(self, view: memoryview) -> None:
        self._view, self._begin = view, 0

    def take(self, size: int) -> memoryview:
        end = self._begin + size
        if size < 0 or end > len(self._view):
            raise ValueError(size)
        taken = self._view[self._begin : end]
        self._begin = end
        return taken


def _restored(plain: Any, buffers: _Buffers) -> Any:
    if isinstance(plain, list):
        return [_restored(item, buffers) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if _BUFFER not in plain:
        return {key: _restored(item, buffers) for key, item in plain.items()}
    size, *form = plain[_BUFFER]
    taken = buffers.take(size)
    if not form:
        return bytes(taken)
    dtype, shape = form
    if not _DTYPE.fullmatch(dtype) or any(length < 0 for length in shape):
        raise ValueError(dtype)
    return np.frombuffer(bytearray(taken), dtype).reshape(shape)


def send(channel: socket.socket, message: bytes) -> None:
    """Send a message.

    Raises:
        OSError: the other side has ended, or the channel's timeout has passed.
    """
    channel.sendall(len(message).to_bytes(_LENGTH, "little"))
    channel.sendall(message)


def receive(
    channel: socket.socket, most: int | None = None, wait: Callable[[], None] | None = None
) -> bytearray:
    """Return the next message.

    Args:
        channel: a stream socket.
        most: bytes of the longest message that is read; None for any length.
        wait: called before each read; it sets the channel's timeout, or raises to end the wait.

    Raises:
        EOFError: the other side has ended.
        MalformedMessage: the message is longer than `most`.
        OSError: the channel is broken.
    """
    size = int.from_bytes(_read(channel, _LENGTH, wait), "little")
    if most is not None and size > most:
        raise MalformedMessage(f"{size:,} bytes")
    return _read(channel, size, wait)


def _read(channel: socket.socket, size: int, wait: Callable[[], None] | None) -> bytearray:
    # It grows as bytes come: an announced length alone takes no memory.
    data = bytearray()
    while len(data) < size:
        if wait is not None:
            wait()
        try:
            got = channel.recv(min(size - len(data), _CHUNK))
        except TimeoutError:
            continue  # `wait` decides how long
        if not got:
            raise EOFError
        data += got
    return data
