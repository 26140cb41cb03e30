"""Who may call the service: tokens with scopes, and the names and origins that are accepted."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.reading import read_text

_log = logging.getLogger(__name__)

SCOPES = ("read", "write")
COOKIE = "granalign_session"
SESSION_SECONDS = 12 * 3600
"""How long a session of the page lasts."""
_LEAST_CHARACTERS = 16
"""The length of a token; `openssl rand -hex 32` gives 64."""
_MOST_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Token:
    """A token, of which only the digest is kept.

    Attributes:
        name: for the log.
        scopes: what it allows.
        digest: SHA-256 of its text.
    """

    name: str
    scopes: frozenset[str]
    digest: bytes


class Tokens:
    """The tokens of a file: a line each, ``NAME SCOPES TOKEN``, scopes ``read`` or ``read,write``.

    Example of a file:
        >>> tokens = Tokens.parse("page read 0123456789abcdef\\nadmin read,write fedcba9876543210")
        >>> tokens.find("fedcba9876543210").name
        'admin'
        >>> tokens.find("fedcba9876543211") is None
        True
    """

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._tokens = tuple(tokens)
        # Sessions end with the process that began them, unless all workers share the tokens.
        digests = b"".join(token.digest for token in self._tokens)
        self._key = hashlib.sha256(b"session" + digests).digest()

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Read a file of tokens.

        Raises:
            GranAlignError: it cannot be read, or a line is not a token.
        """
        remedy = "name a file with a line NAME SCOPES TOKEN for each token"
        text = read_text(path, _MOST_BYTES, remedy=remedy)
        if path.stat().st_mode & 0o007:
            _log.warning("%s: everybody on this machine may read it; run chmod 600", path)
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, name: str = "tokens") -> Tokens:
        """Read the lines of a file; blank lines and those that begin with # are skipped.

        Raises:
            GranAlignError: a line is not a token; the message does not show it.
        """
        tokens: list[Token] = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 3 or not _NAME.fullmatch(words[0]):
                raise GranAlignError(f"{name}:{number}: expected NAME SCOPES TOKEN")
            scopes = frozenset(words[1].split(","))
            if not scopes <= set(SCOPES):
                raise GranAlignError(f"{name}:{number}: expected the scopes read or read,write")
            if len(words[2]) < _LEAST_CHARACTERS:
                raise GranAlignError(
                    f"{name}:{number}: expected a token of at least {_LEAST_CHARACTERS} "
                    f"characters; make one with: openssl rand -hex 32"
                )
            digest = hashlib.sha256(words[2].encode()).digest()
            tokens.append(Token(words[0], scopes, digest))
        if not tokens:
            raise GranAlignError(f"{name}: got no token, expected a line NAME SCOPES TOKEN")
        if len({token.digest for token in tokens}) < len(tokens):
            raise GranAlignError(f"{name}: two lines have one token; give each its own")
        if len({token.name for token in tokens}) < len(tokens):
            raise GranAlignError(f"{name}: two lines have one name; give each its own")
        return cls(tokens)

    def find(self, text: str) -> Token | None:
        """Return the token of a text; the time that it takes does not depend on the text."""
        digest = hashlib.sha256(text.encode(errors="surrogateescape")).digest()
        found = None
        for token in self._tokens:  # all of them, so that the place tells nothing
            if hmac.compare_digest(token.digest, digest):
                found = token
        return found

    def session(self, token: Token) -> str:
        """Return the value of a cookie that stands for a token until it expires."""
        text = f"{token.name}.{int(time.time()) + SESSION_SECONDS}.{secrets.token_hex(8)}"
        return f"{text}.{self._sign(text)}"

    def of_session(self, value: str) -> Token | None:
        """Return the token of a cookie; None if it is not one of ours, or has expired."""
        text, _, signature = value.rpartition(".")
        if not hmac.compare_digest(self._sign(text).encode(), signature.encode()):
            return None
        name, expires, _ = text.rsplit(".", 2)
        if int(expires) < time.time():
            return None
        return next((token for token in self._tokens if token.name == name), None)

    def _sign(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def host_name(host: str) -> str:
    """Return a Host header without its port, in lower case.

    >>> host_name("Example.org:8000"), host_name("[::1]:80")
    ('example.org', '::1')
    """
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def is_loopback(host: str) -> bool:
    """Return whether a name or an address is this machine alone."""
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
