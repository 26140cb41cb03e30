"""The `granalign` command. Heavy imports wait for the command that needs them."""

from __future__ import annotations

from .app import main as main
