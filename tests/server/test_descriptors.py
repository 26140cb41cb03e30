"""The files that a service holds open."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from helpers.service import Service, running


def held(service: Service, library: Path) -> list[str]:
    """The files of the catalogue that the process has open."""
    targets = []
    for path in Path(f"/proc/{service.process.pid}/fd").iterdir():
        try:
            targets.append(str(path.readlink()))
        except FileNotFoundError:  # closed meanwhile
            continue
    return [one for one in targets if one.startswith(f"{library}/.catalogue/segment-")]


def test_files_of_segments_are_closed_when_nothing_names_them_any_more(library: Path) -> None:
    """Also by a preset that nobody has searched since, and where nobody searches at all."""
    with running(library, "--read-only") as service:
        service.wait_until_ready()
        for preset in ("visual", "tuned"):
            body = {"query": "a red picture", "preset": preset}
            assert service.client.post("/v1/search", json=body).status_code == 200
        before = len(held(service, library))
        assert before
        for number in range(3):
            shutil.copytree(library / "second", library / f"copy{number}")
            until = time.monotonic() + 30
            while service.client.get("/v1/videos").json()["total"] != 3 + number:
                assert time.monotonic() < until
                time.sleep(0.1)
        until = time.monotonic() + 30
        while any(one.endswith(" (deleted)") for one in held(service, library)):
            assert time.monotonic() < until, held(service, library)
            time.sleep(0.1)
        segments = {one.rpartition("/")[0] for one in held(service, library)}
        there = {str(path) for path in library.glob(".catalogue/segment-*")}
        assert segments == there and len(held(service, library)) == before * len(there)
