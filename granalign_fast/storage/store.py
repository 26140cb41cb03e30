"""Files below an address of an object store, or below a folder, by pyarrow's file systems."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from granalign_fast.errors import GranAlignError, one_line
from granalign_fast.files import replacing
from granalign_fast.reading import open_file

from .address import Address

_CHUNK = 1 << 22
"""Bytes that are copied at a time."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """The size of a file or object, and the time of its last change."""

    bytes: int
    modified_ns: int

    @property
    def stamp(self) -> str:
        """A text that changes when the file does, as long as two changes differ in time or size."""
        return f"{self.modified_ns}-{self.bytes}"


@dataclass(frozen=True)
class Store:
    """The files below an address or a folder, by names such as ``street/manifest.json``.

    A store can be pickled: only its place is. Credentials come from the environment, as pyarrow
    reads them, and for S3 also ``AWS_ENDPOINT_URL``.
    """

    place: Address | Path
    _opened: list[Any] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def at(cls, name: str | os.PathLike[str]) -> Store:
        """Return the store at an address or in a folder; nothing is opened yet.

        Raises:
            GranAlignError: the address is malformed.
        """
        return cls(Address.find(name) or Path(name).absolute())

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "_opened": []}

    def __str__(self) -> str:
        return str(self.place)

    @property
    def is_remote(self) -> bool:
        """Whether the files lie in an object store."""
        return isinstance(self.place, Address)

    def list(self, below: str = "", *, recursive: bool = True) -> dict[str, StoredFile]:
        """Return all files, sorted by name; none if there is nothing at the place.

        Args:
            below: the folder to list; the names begin with it all the same.
            recursive: also the folders inside it.

        Raises:
            GranAlignError: the store cannot be read.
        """
        from pyarrow.fs import FileSelector, FileType

        system, root = self._system()
        selector = FileSelector(_join(root, below), allow_not_found=True, recursive=recursive)
        with self._explaining("listed", below):
            infos = system.get_file_info(selector)
        return {
            info.path[len(root) + 1 :]: StoredFile(info.size, info.mtime_ns or 0)
            for info in sorted(infos, key=lambda info: info.path)
            if info.type == FileType.File
        }

    def find(self, name: str = "") -> StoredFile | None:
        """Return the size and time of a file; None if there is none.

        Raises:
            GranAlignError: the store cannot be read.
        """
        from pyarrow.fs import FileType

        system, root = self._system()
        with self._explaining("read", name):
            info = system.get_file_info(_join(root, name))
        return StoredFile(info.size, info.mtime_ns or 0) if info.type == FileType.File else None

    def read(self, name: str, most: int) -> bytes:
        """Return the content of a file.

        Args:
            name: of the file.
            most: bytes that it may have.

        Raises:
            GranAlignError: there is no such file, it is too large, or it cannot be read.
        """
        return b"".join(self._chunks(name, most))

    def open(self, name: str = "") -> Any:
        """Return a file that can seek; what is read of it is fetched by range requests.

        Raises:
            GranAlignError: there is no such file, or it cannot be read.
        """
        system, root = self._system()
        with self._explaining("read", name):
            return system.open_input_file(_join(root, name))

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole or not at all; one of this name is replaced.

        Raises:
            GranAlignError: the store cannot be written.
        """
        if isinstance(self.place, Path):
            target = self.place / name
            with self._explaining("written", name):
                target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as sink:
                sink.write(content)
                sink.flush()
                os.fsync(sink.fileno())
            return
        system, root = self._system()
        with self._explaining("written", name), system.open_output_stream(_join(root, name)) as out:
            out.write(content)

    def put(self, name: str, source: Path) -> str:
        """Copy a local file to an object store; a file of this name is replaced.

        Returns:
            The SHA-256 of what was copied, in hex.

        Raises:
            GranAlignError: the local file cannot be read, or the store cannot be written.
        """
        system, root = self._system()
        digest = hashlib.sha256()
        with (
            open_file(source) as file,
            self._explaining("written", name),
            system.open_output_stream(_join(root, name)) as out,
        ):
            while chunk := file.read(_CHUNK):
                out.write(chunk)
                digest.update(chunk)
        return digest.hexdigest()

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; one that is not there is no error.

        Raises:
            GranAlignError: a file cannot be deleted.
        """
        system, root = self._system()
        for name in names:
            with self._explaining("deleted", name):
                try:
                    system.delete_file(_join(root, name))
                except FileNotFoundError:
                    continue

    def remove_folder(self, name: str) -> None:
        """Delete all files below a name; nothing is done if there are none.

        Raises:
            GranAlignError: a file cannot be deleted.
        """
        system, root = self._system()
        with self._explaining("deleted", name):
            try:
                system.delete_dir(_join(root, name))
            except FileNotFoundError:
                return

    def fetch(self, name: str, target: Path, most: int | None = None) -> str:
        """Copy a file to a local one, whole or not at all; one of this name is replaced.

        Args:
            name: of the file.
            target: the local file.
            most: bytes that the file may have; None for any number.

        Returns:
            The SHA-256 of the content, in hex.

        Raises:
            GranAlignError: there is no such file, or one of both cannot be read or written.
        """
        digest = hashlib.sha256()
        with replacing(target) as sink:
            for chunk in self._chunks(name, most):
                sink.write(chunk)
                digest.update(chunk)
        return digest.hexdigest()

    def sha256(self, name: str = "") -> str:
        """Return the SHA-256 of a file's content, in hex; the file is read to its end.

        Raises:
            GranAlignError: there is no such file, or it cannot be read.
        """
        digest = hashlib.sha256()
        for chunk in self._chunks(name):
            digest.update(chunk)
        return digest.hexdigest()

    def _chunks(self, name: str, most: int | None = None) -> Iterator[bytes]:
        system, root = self._system()
        path, size = _join(root, name), 0
        with self._explaining("read", name), system.open_input_stream(path) as source:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                if most is not None and size > most:
                    raise GranAlignError(
                        f"{self._name(name)}: got more than {most:,} bytes, expected at most that"
                    )
                yield chunk

    def _name(self, name: str) -> str:
        return f"{self.place}/{name}" if name else str(self.place)

    def _system(self) -> tuple[Any, str]:
        """Return pyarrow's file system and the path of the place in it."""
        place = self.place
        if not self._opened:
            with self._explaining("opened", ""):
                self._opened.append(_local() if isinstance(place, Path) else _connect(place))
        return self._opened[0], str(place) if isinstance(place, Path) else place.path

    @contextmanager
    def _explaining(self, done: str, name: str) -> Iterator[None]:
        """Turn an error of the block into a GranAlignError; a GranAlignError stays."""
        try:
            yield
        except GranAlignError:
            raise
        except FileNotFoundError:
            raise GranAlignError(f"{self._name(name)}: no such file") from None
        except Exception as error:  # pyarrow has errors of many types
            raise GranAlignError(
                f"{self._name(name)}: cannot be {done} ({one_line(error)}){self._remedy()}"
            ) from None

    def _remedy(self) -> str:
        if isinstance(self.place, Path):
            return ""
        if self.place.scheme == "gs":
            return "; check the bucket, and GOOGLE_APPLICATION_CREDENTIALS"
        return (
            "; check the bucket, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_ENDPOINT_URL "
            "if the server is not Amazon's"
        )


def _join(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def _local() -> Any:
    from pyarrow.fs import LocalFileSystem

    return LocalFileSystem()


def _connect(address: Address) -> Any:
    """Return pyarrow's file system of an object store."""
    options = dict(address.options)
    if address.scheme == "gs":
        from datetime import timedelta

        from pyarrow.fs import GcsFileSystem

        options.pop("region", None)
        # A server of one's own has no accounts.
        anonymous = "endpoint_override" in options
        return GcsFileSystem(
            anonymous=anonymous, retry_time_limit=timedelta(seconds=_PATIENCE), **options
        )
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if "endpoint_override" not in options and url:
        parts = urlsplit(url if "//" in url else f"//{url}")
        options["endpoint_override"] = parts.netloc
        options.setdefault("scheme", parts.scheme or "https")
    if "region" not in options:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if region is None and "endpoint_override" not in options:
            from pyarrow.fs import resolve_s3_region

            region = resolve_s3_region(address.bucket)
        options["region"] = region or "us-east-1"
    return S3FileSystem(
        # A small file is one request: no upload of many parts, no look before it.
        allow_delayed_open=True,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        **options,
    )


_ATTEMPTS = 5
"""Requests to S3 until an error counts; the delay doubles each time."""
_PATIENCE = 30
"""Seconds until an error of Google's store counts."""
