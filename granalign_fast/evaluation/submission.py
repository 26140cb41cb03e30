"""Write predictions as a submission: JSON Lines, or the zip that QVHighlights' server took."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

from granalign_fast.datasets import PathLike
from granalign_fast.errors import GranAlignError
from granalign_fast.files import replacing
from granalign_fast.jsonl import Record, write_jsonl
from granalign_fast.parsing.limits import MOST_DOCUMENT_BYTES
from granalign_fast.reading import open_file

MEMBERS = ("hl_val_submission.jsonl", "hl_test_submission.jsonl")
"""The two files of a submission to QVHighlights' server, in no folder
(github.com/jayleicn/moment_detr, ``standalone_eval/README.md``)."""

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The date of every member, so that equal predictions make equal files."""


def check_predictions_file(path: Path, dataset: str) -> None:
    """Raise before any work if a file of this name cannot hold the predictions.

    Raises:
        GranAlignError: its suffix is of no such file, it is a zip for another dataset than
            QVHighlights, or a zip that is there is no submission.
    """
    if path.suffix != ".zip":
        if not path.name.endswith((".jsonl", ".jsonl.gz")):
            raise GranAlignError(
                f"--predictions {path}: expected a name that ends in .jsonl, .jsonl.gz or .zip"
            )
        return
    if dataset != "qvhighlights":
        raise GranAlignError(
            f"--predictions {path}: got a zip for {dataset}, expected .jsonl or .jsonl.gz: only "
            f"QVHighlights' server takes a zip"
        )
    if path.exists():
        _read_members(path)


def write_predictions(path: PathLike, predictions: Sequence[Record], *, shown: bool) -> None:
    """Write predictions, whole or not at all.

    A name that ends in ``.zip`` gives the archive that QVHighlights' server took. The server wants
    the predictions of val and of test in one archive, so an archive that is there keeps the other
    file.

    Args:
        path: of the file: ``.jsonl``, ``.jsonl.gz`` or ``.zip``.
        predictions: the lines.
        shown: whether the queries have ground truth. In an archive they then stand as those of
            val, otherwise as those of test, whose ground truth is not published.

    Raises:
        GranAlignError: the file cannot be written, or it is a zip that is no submission.
    """
    path = Path(path)
    if path.suffix != ".zip":
        write_jsonl(path, predictions)
        return
    members = _read_members(path) if path.exists() else {}
    lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in predictions)
    members[MEMBERS[0 if shown else 1]] = "".join(f"{line}\n" for line in lines).encode()
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name in MEMBERS:
            if name in members:
                entry = zipfile.ZipInfo(name, _EARLIEST)
                archive.writestr(entry, members[name], zipfile.ZIP_DEFLATED)


def _read_members(path: Path) -> dict[str, bytes]:
    """Return the files of a submission.

    Raises:
        GranAlignError: it is no zip, or holds other files.
    """
    try:
        with open_file(path) as file, zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if unknown := set(names) - set(MEMBERS):
                raise GranAlignError(
                    f"{path}: got a zip with {min(unknown)!r}, expected a submission of "
                    f"{' and '.join(MEMBERS)}; name another file"
                )
            # The sizes are those that the zip announces; more than that is not read.
            if sum(entry.file_size for entry in archive.infolist()) > MOST_DOCUMENT_BYTES:
                raise GranAlignError(
                    f"{path}: got a zip of more than {MOST_DOCUMENT_BYTES:,} bytes; delete it"
                )
            return {name: archive.read(name) for name in names}
    except (zipfile.BadZipFile, EOFError) as error:
        raise GranAlignError(
            f"{path}: not a whole zip ({error}); delete it, or name another file"
        ) from None
    except OSError as error:
        raise GranAlignError(f"{path}: cannot be read ({error.strerror or error})") from None
