"""Addresses of object stores: ``s3://bucket/prefix`` and ``gs://bucket/prefix``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from granalign_fast.errors import GranAlignError

SCHEMES = {"s3": "s3", "gs": "gs", "gcs": "gs"}
"""The schemes that are understood, and the name that each is kept by."""

_OPTIONS = ("endpoint_override", "region", "scheme")
"""Options that may follow an address, as pyarrow has them."""

_ENDPOINT = re.compile(r"(https?):/{1,2}(.+?)/*")
"""An endpoint with its scheme; that of a `Path` has one slash as well."""

_ADDRESS = re.compile(r"(s3|gs|gcs):/{1,2}(.*)", re.DOTALL)
"""A `Path` of an address has one slash instead of two."""


@dataclass(frozen=True, slots=True)
class Address:
    """A bucket of an object store, or a prefix or an object in it.

    Attributes:
        scheme: ``s3`` or ``gs``.
        path: the bucket and what follows, without a slash at the end.
        options: endpoint, region and scheme of the connection, where they do not come from the
            environment. They are no part of the name of an object.
    """

    scheme: str
    path: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def find(cls, name: str | os.PathLike[str]) -> Address | None:
        """Return the address that a name is; None for the path of a file.

        Raises:
            GranAlignError: the address has no bucket, holds a key, or has an unknown option.
        """
        text = os.fspath(name)
        match = _ADDRESS.fullmatch(text)
        if match is None:
            return None
        scheme, (path, _, query) = match[1], match[2].partition("?")
        if "@" in path.partition("/")[0]:
            raise GranAlignError(
                f"{scheme}://...: got an address with a key in it, expected "
                f"{scheme}://bucket/name; put keys into the environment"
            )
        path = path.strip("/")
        if not path or "//" in path:
            raise GranAlignError(f"{text}: expected a bucket, as in {scheme}://bucket/name")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for option in options:
            if option not in _OPTIONS:
                raise GranAlignError(
                    f"{scheme}://{path}: got the option {option!r}, expected one of "
                    f"{', '.join(_OPTIONS)}"
                )
        if url := _ENDPOINT.fullmatch(options.get("endpoint_override", "")):
            options |= {"endpoint_override": url[2], "scheme": url[1]}
        return cls(SCHEMES[scheme], path, tuple(options.items()))

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"

    @property
    def full(self) -> str:
        """The address with its options."""
        options = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self}{options}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def bucket(self) -> str:
        """The first part of the path."""
        return self.path.partition("/")[0]

    def child(self, name: str) -> Address:
        """Return the address of what lies below."""
        return replace(self, path=f"{self.path}/{name}")

    def is_below(self, place: Address) -> bool:
        """Return whether this is an address or lies below it, whatever the options are."""
        below = f"{self.path}/".startswith(f"{place.path}/")
        return self.scheme == place.scheme and below

    def to_path(self) -> Path:
        """Return an absolute path that stands for the address, for records that hold a path.

        No file lies there. `address_of` returns the address, without its options.
        """
        return Path(f"/{self.scheme}:", self.path)


def address_of(path: Path) -> Address | None:
    """Return the address that a path stands for, by `Address.to_path`; None for any other path."""
    parts = path.parts
    if len(parts) < 3 or parts[0] != "/" or parts[1][:-1] not in SCHEMES or parts[1][-1] != ":":
        return None
    return Address(parts[1][:-1], "/".join(parts[2:]))


def path_text(path: Path) -> str:
    """Return a path as people write it: an address as such, any other path unchanged."""
    address = address_of(path)
    return str(path) if address is None else str(address)
