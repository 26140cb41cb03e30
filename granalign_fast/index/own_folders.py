"""Check the folders that this package keeps in a library, before anything in them is changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from granalign_fast.errors import GranAlignError


def check_own_folder(folder: Path) -> bool:
    """Return whether a folder of a library is there, such as ``.indexing``, or that of an index.

    A library of somebody else can have a link in its place. What then was deleted, moved or written
    would be in a folder that has nothing to do with the library.

    Args:
        folder: a folder in a library, or in a folder that was checked.

    Raises:
        GranAlignError: it is a link or a file, or belongs neither to this user nor to the owner of
            the folder in which it lies.
    """
    try:
        status = folder.lstat()
        owners = os.geteuid(), folder.parent.stat().st_uid
    except FileNotFoundError:
        return False
    except OSError as error:
        raise GranAlignError(f"{folder}: cannot be read ({error.strerror or error})") from None
    if not stat.S_ISDIR(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "a file"
        raise GranAlignError(
            f"{folder}: got {kind}, expected a folder of the library; move it away"
        )
    if status.st_uid not in owners:
        raise GranAlignError(
            f"{folder}: got a folder of user {status.st_uid}, expected one of the library's owner; "
            f"move it away"
        )
    return True
