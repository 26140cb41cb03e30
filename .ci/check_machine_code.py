"""Does the machine code of the kernels do what is said of it, where no GPU can show it?

Called by ``make cubins`` with the path of cuobjdump and the compiled kernels.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

WIDE = r"LDG\.E\S*\.128"
EXPECTED = {
    "context": {"context": (WIDE,)},
    "corpus": {"one": (WIDE,), "few": (WIDE,)},
    # Copies past the registers, 16 bytes wide, and tensor cores.
    "corpus_many": {"many": (r"LDGSTS\S*\.128", r"HMMA\.")},
    # Copies of boxes, products of warpgroups, registers that go from one warpgroup to another.
    "corpus_sm90": {"many_sm90": (r"UTMALDG\.2D", r"HGMMA\.64x256x16\.F32", "USETMAXREG")},
    "similarity": {"cosines": (WIDE,)},
}
"""By source and kernel: instructions that there must be."""
LOCAL = r"(?:LDL|STL)\b"
"""Local memory, which no kernel is to need."""


def kernels_of(cuobjdump: str, cubin: Path) -> dict[str, str]:
    """The machine code of each kernel."""
    text = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def main(arguments: Sequence[str]) -> int:
    """Say what is missing; 1 if anything is."""
    cuobjdump, *cubins = arguments
    wrong, checked = [], 0
    for cubin in map(Path, cubins):
        source = cubin.name.split("-")[0]
        kernels = kernels_of(cuobjdump, cubin)
        wanted = EXPECTED.get(source, {})
        wrong += [f"{cubin.name}: no kernel {name}" for name in wanted.keys() - kernels.keys()]
        for name, code in kernels.items():
            needed = [p for p in wanted.get(name, ()) if not re.search(p, code)]
            wrong += [f"{cubin.name}, {name}: no {pattern}" for pattern in needed]
            if re.search(LOCAL, code):
                wrong.append(f"{cubin.name}, {name}: uses local memory")
            checked += 1
    if not checked:
        wrong.append("no kernel to check")
    print("\n".join(wrong) or f"machine code of {checked} kernels: loads 16 bytes wide, no spills")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
