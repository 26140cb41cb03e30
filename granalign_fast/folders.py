"""Folders that appear whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GranAlignError


@contextmanager
def appearing(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when the block ends well, and vanishes otherwise."""
    if out.exists():
        raise GranAlignError(f"{out}: already exists; name a folder that does not, or delete it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise GranAlignError(f"{out}: cannot be written ({error.strerror or error})") from None
    try:
        yield draft
        draft.chmod(0o755)  # mkdtemp makes it private
        draft.rename(out)
    except OSError as error:
        raise GranAlignError(f"{out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
