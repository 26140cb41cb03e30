"""The errors that a user can cause, and the wording that their messages share."""

from __future__ import annotations

import contextlib
import re
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from pathlib import Path

from .parsing.limits import MOST_MESSAGE


class GranAlignError(ValueError):
    """Bad input. The message is one line: what was got, what was expected, what to do.

    Line ends in it, which a name or another library's words can hold, become spaces. The middle of
    a message of more than `MOST_MESSAGE` characters is left out.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_message(one) if isinstance(one, str) else one for one in arguments))


def _message(text: str) -> str:
    return _cut(" ".join(text.splitlines()), MOST_MESSAGE)


class MissingFileError(GranAlignError):
    """There is no file at the path that was named."""


class PromptTooLongError(GranAlignError):
    """A prompt does not fit a language model's context; nothing has been computed.

    Attributes:
        prompt: its number in the batch.
        size: what was got and what was expected, in tokens, for a message that names the text that
            a user can shorten.
    """

    def __init__(self, name: str, prompt: int, size: str) -> None:
        super().__init__(f"{name}: {size}; shorten the prompt")
        self.prompt = prompt
        self.size = size


class MissingExtraError(GranAlignError, ImportError):
    """A feature needs packages of an optional extra that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra [{extra}], which is not installed: "
            f"run {install_command(extra)}"
        )


_OWN: tuple[type[BaseException], ...] = (
    GranAlignError,
    KeyboardInterrupt,
    SystemExit,
    GeneratorExit,
)


@contextlib.contextmanager
def foreign_errors(
    what: str, remedy: str, *, passed: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn whatever another library raises in the block into one line.

    A panic of a library in Rust is no `Exception`; memory and the stack can run out as well.

    Args:
        what: begins the message, before the library's own words.
        remedy: ends it.
        passed: exceptions that stay as they are.

    Raises:
        GranAlignError: the block raised anything but this, a signal of the user, or an exit.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, _OWN + passed):
            raise
        raise GranAlignError(f"{what} ({one_line(error)}); {remedy}") from None


def one_line(error: BaseException) -> str:
    """Return another library's error in one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def missing_key(where: str, key: str, record: Mapping[str, object]) -> GranAlignError:
    """Return the error of a JSON record that lacks a key; it lists the keys that are there."""
    keys = listed([short_repr(name) for name in sorted(record)]) or "none"
    return GranAlignError(f"{where}: key {key!r} is missing; got the keys {keys}")


def short_repr(value: object, most: int = 100) -> str:
    """Return the `repr` of a wrong value for an error message: one line, its middle left out.

    Args:
        value: what was got.
        most: characters of the result; longer ones are cut in the middle.
    """
    text = repr(value) if _is_small(value, 4 * most) else _bounded_repr(value, 4 * most)
    if "\n" in text:  # that of an array, for one
        text = " ".join(text.split())
    return _cut(text, most)


def _cut(text: str, most: int) -> str:
    """Return a text of at most `most` characters; the middle of a longer one is left out."""
    half = (most - 3) // 2
    return text if len(text) <= most else f"{text[:half]}...{text[-half:]}"


def _is_small(value: object, most: int) -> bool:
    """Whether a value has at most about so many characters and parts, without writing it."""
    pending = [value]
    while pending and most > 0:
        one = pending.pop()
        if isinstance(one, str | bytes):
            most -= len(one)
        elif isinstance(one, int):
            most -= one.bit_length() // 3
        elif isinstance(one, Mapping):
            pending += islice(one.items(), most)
        elif isinstance(one, list | tuple | set | frozenset):
            pending += islice(one, most)
        most -= 1
    return most > 0


def _bounded_repr(value: object, most: int) -> str:
    """Return the beginning of each part of a value; to write all of it could take all memory."""
    writer = reprlib.Repr()
    for name in ("maxlist", "maxtuple", "maxset", "maxfrozenset", "maxdict", "maxdeque"):
        setattr(writer, name, most // 4)
    writer.maxstring = writer.maxother = writer.maxlong = most
    try:
        return writer.repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        return f"<{type(value).__name__}>"


def listed(items: Collection[object], most: int = 5) -> str:
    """Join items for an error message: ``a, b, c, d, e and 3 more``.

    Args:
        items: what to name; each is shown by `str`, so quote texts with `repr` first.
        most: how many are shown before the rest is counted; at least one.
    """
    shown = ", ".join(str(item) for item in islice(items, most))
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def counted(count: int, noun: str, nouns: str | None = None) -> str:
    """Return a number of things in words: ``1 query``, ``1,550 queries``.

    Args:
        count: how many there are.
        noun: of one of them.
        nouns: of several; None: the noun with an s.
    """
    return f"{count:,} {noun if count == 1 else nouns or noun + 's'}"


_DISTRIBUTION = "granalign-fast"
_RUNTIMES = {"cpu": "onnxruntime", "cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu"}
"""The distribution of ONNX Runtime that an extra brings. Both install the same files, so one of
them must be removed before the other is installed."""


def install_command(extra: str) -> str:
    """Return the shell command that adds an extra to this installation.

    A checkout, a wheel file and a release on a package index each need another command. A
    distribution of ONNX Runtime that the extra excludes is uninstalled first.
    """
    import shlex

    command = f"pip install {_requirement(extra, shlex.quote)}"
    needed = _RUNTIMES.get(extra)
    others = sorted({*_RUNTIMES.values()} - {needed}) if needed else []
    if excluded := [name for name in others if _is_installed(name)]:
        return f"pip uninstall -y {' '.join(excluded)} && {command}"
    return command


def _requirement(extra: str, quote: Callable[[str], str]) -> str:
    """Return what `pip install` has to be given for this package with an extra."""
    import json
    from importlib.metadata import PackageNotFoundError, distribution, requires

    # The code runs from a checkout: installed as editable, or only on the path.
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return "-e " + quote(f"{checkout}[{extra}]")
    try:
        origin = json.loads(distribution(_DISTRIBUTION).read_text("direct_url.json") or "null")
    except (PackageNotFoundError, ValueError):
        origin = None
    # pip writes direct_url.json (PEP 610) for all that does not come from an index.
    if origin is None:
        return quote(f"{_DISTRIBUTION}[{extra}]")
    url = str(origin["url"])
    if not url.startswith("file:"):
        if version_control := origin.get("vcs_info"):
            url = f"{version_control['vcs']}+{url}@{version_control['commit_id']}"
        return quote(f"{_DISTRIBUTION}[{extra}] @ {url}")
    from urllib.parse import unquote, urlsplit

    path = Path(unquote(urlsplit(url).path))
    if path.exists():
        return quote(f"{path}[{extra}]")
    # The wheel or folder is gone: name the packages that the extra stands for.
    marker = re.compile(rf"""; *extra == ["']{extra}["']$""")
    packages = [marker.split(one)[0] for one in requires(_DISTRIBUTION) or () if marker.search(one)]
    return " ".join(map(quote, packages)) or quote(f"{_DISTRIBUTION}[{extra}]")


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def check_unicode(name: str, text: str) -> None:
    """Raise if a text holds half of a surrogate pair; the message begins with `name`."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GranAlignError(
            f"{name}: got {short_repr(text)}, expected valid Unicode; character {error.start + 1} "
            f"is half of a surrogate pair: decode the text as UTF-8"
        ) from None
