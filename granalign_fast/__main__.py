"""``python -m granalign_fast``: the same as the command `granalign`."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
