"""A model that was opened from an exported folder."""

from __future__ import annotations

from typing import Any


class ExportedModel:
    """A model that was opened from an exported folder."""

    manifest: Any
    """Its `Manifest`."""

    @property
    def fingerprint(self) -> str:
        """Name of the model's results, by what its folder says of itself."""
        raise NotImplementedError

    @property
    def content_key(self) -> str:
        """Name of the results in a cache: the fingerprint, and a hash of the files' content."""
        return f"{self.fingerprint}-{self.manifest.content_sha256}"
