"""The `granalign` command.

Modules that are slow to import (numpy, onnxruntime, matplotlib) are imported by the command that
needs them, so that ``granalign --help`` answers at once.

Logging. The package logs with Python's `logging`, one logger for each module, all below the logger
``granalign_fast``. The library never configures logging. The command does: it writes the messages
to stderr, one line each, from the level that ``-v`` and ``-q`` choose.

=========  ==========================================================
option     what is shown
=========  ==========================================================
``-q``     errors only; no warnings and no progress
(none)     warnings and progress
``-v``     also what takes time or writes files: models loaded, exports, caches, videos, batches
``-vv``    also every file written, every cached prefix found, the time of each stage of a search
=========  ==========================================================
"""

from __future__ import annotations

from .app import main as main
