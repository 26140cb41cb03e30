"""``granalign doctor``: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import typer

from .options import Device, Json, Models, Preset, print_json


def doctor(
    preset: Preset = "tuned",
    models: Models = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Show what is installed, what is missing, and the command that installs it."""
    from dataclasses import asdict

    from granalign_fast.pipeline import models_folder

    from .diagnosis import examine
    from .tables import print_findings

    folder = None if models is None else models_folder(models)
    findings = examine(device, preset=preset, models=folder)
    if as_json:
        print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        print_findings(findings)
    if not all(finding.ok for finding in findings if finding.needed):
        raise typer.Exit(1)
