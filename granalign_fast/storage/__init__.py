"""Object stores: addresses such as ``s3://bucket/videos``, and the files below them."""

from .address import Address
from .store import Store, StoredFile

__all__ = ["Address", "Store", "StoredFile"]
