"""The readers of the package, and the small valid files that each of them is given changed."""

from __future__ import annotations

from . import indexes, media, models, texts
from .case import Case, make, repair_manifest

__all__ = ["CASES", "Case", "make"]

CASES: dict[str, Case] = {
    "index": Case(6, indexes.write_index, indexes.read_index, lambda f: repair_manifest(f / "a")),
    "index-of-video": Case(
        2,
        indexes.write_sourced_index,
        indexes.read_index,
        lambda f: repair_manifest(f / "a"),
        kept=("*.mp4",),
    ),
    "library": Case(4, indexes.write_library, indexes.read_library, indexes.repair_library),
    "unfinished": Case(1, indexes.write_unfinished, indexes.read_unfinished, files=("out/**/*",)),
    "sentence-encoder": Case(4, models.write_encoder, models.read_encoder, models.repair_model),
    "frame-encoder": Case(3, models.write_clip, models.read_clip, models.repair_model),
    "language-model": Case(3, models.write_llm, models.read_llm, models.repair_model),
    "vision-language-model": Case(2, models.write_vlm, models.read_vlm, models.repair_model),
    "tokenizer": Case(4, models.write_tokenizer, models.read_tokenizer),
    "template": Case(5, models.write_templates, models.read_templates),
    "onnx": Case(4, models.write_graph, models.read_graph, files=("a/model.onnx",)),
    "bert-source": Case(3, models.write_bert_source, models.read_bert_source),
    "llm-source": Case(2, models.write_llm_source, models.read_llm_source),
    "clip-source": Case(2, models.write_clip_source, models.read_clip_source),
    "captions": Case(4, texts.write_captions, texts.read_captions),
    "rewrites": Case(4, texts.write_rewrites, texts.read_rewrites),
    "predictions": Case(4, texts.write_predictions, texts.read_predictions),
    "annotations": Case(6, texts.write_annotations, texts.read_annotations),
    "reports": Case(2, texts.write_reports, texts.read_reports),
    "video": Case(5, media.write_videos, media.read_videos, alone=True),
    "cache": Case(2, media.write_caches, media.read_caches),
}
"""Every reader, by name."""
