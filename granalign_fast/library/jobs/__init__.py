"""Indexing jobs: sources and output in folders or object stores, on this machine or by Ray Data."""

from .job import index_sources
from .records import StageModels, Workers

__all__ = ["StageModels", "Workers", "index_sources"]
