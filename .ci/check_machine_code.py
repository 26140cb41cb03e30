"""Check the kernels' machine code for instructions that it must contain; this needs no GPU.

``make cubins`` calls it with the path of cuobjdump and the compiled kernels.
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
    # Asynchronous copies to shared memory, 16 bytes wide, and tensor cores.
    "corpus_many": {"many": (r"LDGSTS\S*\.128", r"HMMA\.")},
    # Tensor memory accelerator copies, products of warpgroups, registers moved between warpgroups.
    "corpus_sm90": {"many_sm90": (r"UTMALDG\.2D", r"HGMMA\.64x256x16\.F32", "USETMAXREG")},
    "feedback": {"feedback": (WIDE,)},
    "similarity": {"cosines": (WIDE,)},
}
"""Patterns of instructions that must occur, by source file and kernel."""
LOCAL = r"(?:LDL|STL)\b"
"""Pattern of accesses to local memory, which no kernel may have."""


def kernels_of(cuobjdump: str, cubin: Path) -> dict[str, str]:
    """Return the machine code of each kernel."""
    text = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    parts = re.split(r"^\s*Function : (\S+)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def main(arguments: Sequence[str]) -> int:
    """Print what is missing or forbidden; return 1 if anything is."""
    cuobjdump, *cubins = arguments
    wrong, checked = [], 0
    for cubin in map(Path, cubins):
        source = cubin.name.split("-")[0]
        kernels = kernels_of(cuobjdump, cubin)
        expected = EXPECTED.get(source, {})
        wrong += [f"{cubin.name}: no kernel {name}" for name in expected.keys() - kernels.keys()]
        for name, code in kernels.items():
            missing = [p for p in expected.get(name, ()) if not re.search(p, code)]
            wrong += [f"{cubin.name}, {name}: no {pattern}" for pattern in missing]
            if re.search(LOCAL, code):
                wrong.append(f"{cubin.name}, {name}: uses local memory")
            checked += 1
    if not checked:
        wrong.append("no kernel to check")
    print("\n".join(wrong) or f"machine code of {checked} kernels: loads 16 bytes wide, no spills")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
