"""Check that the wheel contains exactly the package's files, unchanged."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
"""Results of measurements: they belong to the repository, not to the package."""
SUFFIXES = {".py", ".cu", ".cuh", ".css", ".html", ".js", ".svg", ".typed"}
SUFFIXES |= {".onnx", ".onnx_data", ".json", ".jinja"}


def in_the_tree() -> dict[str, str]:
    """Return the hash of each file that belongs in the wheel, by its name in the wheel."""
    folders = [("granalign_fast", ROOT / "granalign_fast")]
    folders += [(f"granalign_fast/{name}", ROOT / name) for name in ("kernels", "export", "bench")]
    return {
        f"{prefix}/{path.relative_to(folder).as_posix()}": digest(path.read_bytes())
        for prefix, folder in folders
        for path in folder.rglob("*")  # rglob does not follow the links
        if path.is_file()
        and (path.suffix in SUFFIXES or path.name == "py.typed")
        and RESULTS not in path.parents
    }


def in_the_wheel(wheel: Path) -> dict[str, str]:
    """Return the hash of each file in the wheel, except its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: digest(archive.read(name))
            for name in archive.namelist()
            if ".dist-info/" not in name
        }


def digest(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    """Compare the one wheel in dist/ with the tree."""
    (wheel,) = (ROOT / "dist").glob("*.whl")
    tree, packed = in_the_tree(), in_the_wheel(wheel)
    wrong = {f"missing: {name}" for name in tree.keys() - packed.keys()}
    wrong |= {f"unexpected: {name}" for name in packed.keys() - tree.keys()}
    wrong |= {f"differs: {n}" for n in tree.keys() & packed.keys() if tree[n] != packed[n]}
    if wrong:
        sys.exit(f"{wheel.name} does not match the tree:\n" + "\n".join(sorted(wrong)))
    print(f"{wheel.name}: {len(packed)} files, all as in the tree")


if __name__ == "__main__":
    main()
