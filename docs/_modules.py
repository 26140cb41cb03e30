"""Bring the list of modules in ``contributing/map.md`` up to date: ``python docs/_modules.py``.

The list stands between two comments. Each line is the first sentence of the module's docstring.
``--check`` changes nothing and prints which modules are missing from the list, or in it and gone.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAP = ROOT / "docs" / "contributing" / "map.md"
BEGIN, END = "<!-- modules: python docs/_modules.py -->", "<!-- end of modules -->"
LINKED = ("kernels", "export", "bench")
"""Folders of the repository that are subpackages under their own name."""


def modules() -> dict[str, Path]:
    """Return the file of every module below ``granalign_fast``, by its name there."""
    found = {}
    for top in ("granalign_fast", *LINKED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if top == "granalign_fast":
                parts = parts[1:]
                if parts[0] in LINKED:
                    continue  # the links: these files are found in their own folders
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found[".".join(parts) or "granalign_fast"] = path
    return found


def listed() -> set[str]:
    """Return the modules that the map names."""
    return set(re.findall(r"^\| `([\w.]+)` \|", MAP.read_text(encoding="utf-8"), re.MULTILINE))


def rooms() -> str:
    """Return the list: a heading and a table for each folder of the package."""
    groups: dict[str, list[str]] = {}
    for name, path in modules().items():
        folder = path.parent.relative_to(ROOT).as_posix()
        groups.setdefault(folder, []).append(f"| `{name}` | {_sentence(path)} |")
    parts = []
    for folder, lines in sorted(groups.items()):
        parts += [f"### {folder}/\n", "| module | what it does |\n|---|---|", *lines, ""]
    return "\n".join(parts)


def _sentence(path: Path) -> str:
    """Return the first sentence of a module's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = " ".join(text.split("\n\n")[0].split())
    match = re.match(r".+?[.](?=\s+[A-Z]|$)", first)
    return (match[0] if match else first).replace("``", "`").replace("|", "\\|")


def main() -> None:
    """Rewrite the list, or say how it differs from the tree."""
    if "--check" in sys.argv[1:]:
        names = listed()
        for name in sorted(modules().keys() - names):
            print(f"missing from the map: {name}")
        for name in sorted(names - modules().keys()):
            print(f"in the map, not in the tree: {name}")
        sys.exit(names != modules().keys())
    before, _, rest = MAP.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    MAP.write_text(f"{before}{BEGIN}\n\n{rooms()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
