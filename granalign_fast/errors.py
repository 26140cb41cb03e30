"""The one error that a user can cause, and the one that a missing install causes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path


class GranAlignError(ValueError):
    """Bad input; the message is one line: what was got, what was expected, what to do."""


class MissingExtraError(GranAlignError, ImportError):
    """A feature needs packages of an optional extra that is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs the extra [{extra}], which is not installed: "
            f"run {install_command(extra)}"
        )


def one_line(error: BaseException) -> str:
    """An error of another library, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


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
    found = [marker.split(text)[0] for text in requires(_DISTRIBUTION) or () if marker.search(text)]
    return " ".join(map(quote, found)) or quote(f"{_DISTRIBUTION}[{extra}]")


def _is_installed(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True
