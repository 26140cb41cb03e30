"""Whether an export is compared with its source as transformers runs it, and what records it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError, install_command
from granalign_fast.models.manifest import Manifest

OLDEST = (4, 57)
"""The first version of transformers that exports are compared with."""

NOT_COMPARED = "not compared with transformers"
"""The manifest's entry for an export that was not compared."""


def compares(check: bool | None) -> bool:
    """Return whether an export is to be compared with transformers.

    Args:
        check: True or False as the caller asks; None to compare if the packages are installed.

    Raises:
        MissingExtraError: a comparison is asked for, and torch or transformers is not installed.
        GranAlignError: it is asked for, and transformers is too old.
    """
    if check is False:
        return False
    if not _installed():
        if check:
            raise MissingExtraError("comparing an export with transformers", "export")
        return False
    if _version() < OLDEST:
        if check:
            raise GranAlignError(
                f"transformers: got version {'.'.join(map(str, _version()))}, expected "
                f"{'.'.join(map(str, OLDEST))} or later for the comparison; run "
                f"{install_command('export')}"
            )
        return False
    return True


def finish(
    manifest: Manifest,
    draft: Path,
    *,
    compared: bool,
    measured: dict[str, float],
    self_check: dict[str, float],
) -> None:
    """Write the manifest with what was measured: the last file of a draft, which makes it a model.

    Args:
        manifest: without measured errors.
        draft: the folder.
        compared: whether the export was compared with transformers.
        measured: the errors of that comparison, or of the self-check.
        self_check: the errors of the self-check.
    """
    replace(
        manifest, validation=measured, self_check=self_check, comparison=_comparison(compared)
    ).write(draft)


def _comparison(compared: bool) -> str:
    """Return what a manifest records of the comparison."""
    if not compared:
        return NOT_COMPARED
    from importlib.metadata import version

    return f"compared with transformers {version('transformers')}"


def _installed() -> bool:
    """Return whether torch and transformers can be imported."""
    if not all(map(find_spec, ("torch", "transformers"))):
        return False
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except (ImportError, OSError):  # a damaged installation
        return False
    return True


def _version() -> tuple[int, int]:
    """Return the first two numbers of transformers' version."""
    from importlib.metadata import version

    first, second = version("transformers").split(".")[:2]
    return int(first), int("".join(filter(str.isdigit, second)) or 0)
