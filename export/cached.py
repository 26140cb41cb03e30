"""The export of a raw sentence encoder at its first use, kept in the user's cache folder."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

from granalign_fast.errors import GranAlignError
from granalign_fast.export.checks.encoder import check_precision
from granalign_fast.export.encoder_families import encoder_family
from granalign_fast.export.sources.sentence_encoder import SentenceModel
from granalign_fast.models.manifest import fingerprint
from granalign_fast.models.sources import resolve_model
from granalign_fast.runtime.cache_folder import readable_cache, usable_cache

from .sentence_encoder import export_sentence_encoder
from .specs import PRECISIONS

_log = logging.getLogger(__name__)


def cached_export(
    folder: Path, source: str | Path | None, precision: str, cache_dir: str | Path | None
) -> tuple[Path, Path | None]:
    """Return the cached export of a raw model, exported now if there is none.

    Without a cache that can be written, the model is exported to a temporary folder. The second
    value is that folder, which the caller deletes; otherwise it is None.

    Args:
        folder: the model's folder.
        source: what the user named, as for `resolve_model`.
        precision: of the export.
        cache_dir: where exports are kept; None for the user's cache folder.

    Raises:
        GranAlignError: as `export_sentence_encoder`.
    """
    check_precision(precision)
    model = SentenceModel.read(folder)
    # The graph's format is not in the fingerprint: embeddings are equal to within the precision.
    name = fingerprint(model.sha256, precision) + PRECISIONS[precision].graph
    cache, temporary = None, None
    if cache_dir is not None:
        cache = Path(cache_dir)
    else:
        # A cache that cannot be written, such as that of a container's image, can still be read.
        kept = readable_cache()
        if kept is not None and (kept / name / "manifest.json").is_file():
            return kept / name, None
        cache = usable_cache()
        if cache is None:
            cache = temporary = Path(tempfile.mkdtemp(prefix="granalign-"))
    out = cache / name
    if not (out / "manifest.json").is_file():
        _log.info("exporting %s to %s", folder, out)
        try:
            # The comparison would load torch, which takes longer than all the rest.
            check = None if encoder_family(model.config) is None else False
            export_sentence_encoder(source, out, precision=precision, check=check)
        except GranAlignError:
            if not (out / "manifest.json").is_file():  # otherwise another process was quicker
                raise
        finally:  # also after Ctrl-C
            if temporary is not None and not (out / "manifest.json").is_file():
                shutil.rmtree(temporary, ignore_errors=True)
    return out, temporary


def exported_minilm() -> Path:
    """Return the exported folder of all-MiniLM-L6-v2, which is exported if it never was.

    Raises:
        GranAlignError: the model is not installed, or there is no cache folder to keep it in.
    """
    folder, temporary = cached_export(resolve_model(None), None, "fp32", None)
    if temporary is not None:
        shutil.rmtree(temporary, ignore_errors=True)
        raise GranAlignError(
            "got no cache folder that can be written, expected one for all-MiniLM-L6-v2; run "
            "granalign export sentence-encoder, or set XDG_CACHE_HOME"
        )
    return folder
