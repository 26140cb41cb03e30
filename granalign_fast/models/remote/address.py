"""The address of a server: its URL, the key that it wants, and the names of both in messages."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from granalign_fast.errors import GranAlignError, short_repr

_ENDINGS = ("/chat/completions", "/embeddings", "/embed", "/models")
"""Routes that people copy with the address of a server; the program appends them itself."""
_MOST_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Address:
    """The address of a server of one kind of model.

    Attributes:
        role: ``"llm"``, ``"vlm"`` or ``"embed"``: the beginning of its options.
        url: the base of all routes, such as ``http://gpu:8000/v1``, without a slash at its end.
        route: the route that the URL was given with, such as ``/embed``; empty if none.
        key: the key that the server wants; never shown.
    """

    role: str
    url: str
    route: str = ""
    key: str | None = field(default=None, repr=False)

    @property
    def option(self) -> str:
        """The option that names the server."""
        return f"--{self.role}-url"

    @property
    def variable(self) -> str:
        """The environment variable that holds the key."""
        return key_variable(self.role)

    @property
    def is_local(self) -> bool:
        """Whether the server runs on this machine."""
        host = urlsplit(self.url).hostname or ""
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def shows_key(self) -> bool:
        """Whether the key crosses a network that can read it."""
        return self.key is not None and self.url.startswith("http:") and not self.is_local

    @classmethod
    def parse(cls, role: str, text: str) -> Address:
        """Read a URL, and the key from the environment.

        A URL without a path gets ``/v1``, the base of OpenAI's routes.

        Args:
            role: as the attribute.
            text: such as ``http://gpu:8000`` or ``https://host/team/v1``.

        Raises:
            GranAlignError: it is no URL of a server, or holds a password, a query or a fragment;
                the message repeats none of these. The key in the environment is no key.
        """
        option = f"--{role}-url"
        parts = _split(option, text)
        path = parts.path.rstrip("/")
        route = next((ending for ending in _ENDINGS if path.endswith(ending)), "")
        path = path.removesuffix(route)
        if not path and route != "/embed":
            path = "/v1"
        url = f"{parts.scheme}://{parts.netloc.lower()}{path}"
        return cls(role, url, route, _key(role))


def key_variable(role: str) -> str:
    """Return the environment variable that holds the key of a role's server."""
    return f"GRANALIGN_{role.upper()}_API_KEY"


def _split(option: str, text: str) -> SplitResult:
    """Return the parts of a URL, or raise if it cannot be that of a server."""
    expected = "expected the URL of a server, such as http://localhost:8000/v1"
    if not isinstance(text, str) or not text.isprintable() or len(text) > _MOST_CHARACTERS:
        raise GranAlignError(f"{option}: got no URL, {expected}")
    try:
        parts = urlsplit(text.strip())
        _ = parts.port  # a wrong one is refused here
    except ValueError:
        raise GranAlignError(f"{option}: got no URL, {expected}") from None
    # Messages, logs and manifests name the URL, so it may hold no secret.
    if "@" in parts.netloc or parts.query or parts.fragment:
        role = option.removeprefix("--").removesuffix("-url")
        raise GranAlignError(
            f"{option}: got a URL with a user, a password, a query or a fragment, expected none; "
            f"put the key into the environment variable {key_variable(role)}"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in text.strip():
        raise GranAlignError(f"{option}: got {short_repr(text)}, {expected}")
    return parts


def _key(role: str) -> str | None:
    """Return the key in the environment; None if there is none."""
    key = os.environ.get(key_variable(role), "").strip()
    if not key:
        return None
    if not key.isascii() or not key.isprintable() or " " in key:
        raise GranAlignError(
            f"{key_variable(role)}: got characters that no key has, expected letters, digits and "
            f"signs; set it again"
        )
    return key
