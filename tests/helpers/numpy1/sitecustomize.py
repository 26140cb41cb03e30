"""Adds to NumPy 1 and an older pyarrow what the package uses of NumPy 2 and a newer one.

Only Triton's server of the tests needs it, see `triton_server`. The limit that is left out bounds
what a stranger's file may take.
"""

from typing import Any

import numpy as np
import pyarrow.parquet

if not hasattr(np, "vecdot"):

    def vecdot(one: Any, other: Any, out: Any = None) -> Any:
        """Return the inner products of rows."""
        return np.einsum("...i,...i->...", one, other, out=out)

    np.vecdot = vecdot


class ParquetFile(pyarrow.parquet.ParquetFile):
    """A Parquet file without a limit on the depth of its schema."""

    def __init__(self, *arguments: Any, schema_depth_limit: int = 0, **options: Any) -> None:
        super().__init__(*arguments, **options)


pyarrow.parquet.ParquetFile = ParquetFile
