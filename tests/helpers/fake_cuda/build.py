"""The libraries that ONNX Runtime's CUDA provider asks for, without a GPU behind them.

Called by ``make cuda-provider`` with the provider and where to put them. The CUDA runtime is
``runtime.c``; of what it lacks, and of all other libraries, every function that the provider takes
succeeds and does nothing. cuBLAS is so, too: products are not computed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

RUNTIME = "libcudart.so.13"
HEURISTICS = r"int %s(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int most,"
SPECIAL = {
    "cublasCreate_v2": "int %s(void **handle) { static int all; *handle = &all; return 0; }",
    "cublasLtCreate": "int %s(void **handle) { static int all; *handle = &all; return 0; }",
    "cudnnCreate": "int %s(void **handle) { static int all; *handle = &all; return 0; }",
    "cudnnGetVersion": "unsigned long %s(void) { return 91000; }",
    "cublasLtMatmulAlgoGetHeuristic": HEURISTICS + " void *r, int *n) { *n = 0; return 0; }",
}


def run(*command: str | Path) -> str:
    """What a command prints."""
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True
    ).stdout


def undefined(provider: Path) -> dict[str, list[str]]:
    """Functions that the provider takes, by library."""
    wanted: dict[str, list[str]] = {
        name: [] for name in re.findall(r"\[(libcu\S+)\]", run("readelf", "-d", provider))
    }
    for line in run("nm", "-D", "--undefined-only", provider).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if library in wanted:
            wanted[library].append(name)
        elif not library and re.match("cu[A-Z]", name):
            wanted["libcuda.so.1"].append(name)
    # cuDNN is looked for when it is needed, function by function.
    wanted["libcudnn.so.9"] = sorted(
        {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    )
    return wanted


def build(library: str, functions: list[str], out: Path) -> None:
    """Compile a library of these functions."""
    sources, own = [], set()
    if library == RUNTIME:
        sources.append(Path(__file__).with_name("runtime.c"))
        own = set(re.findall(r"^[a-z].*?\b(\w+)\(", sources[0].read_text(), re.MULTILINE))
    rest_of_them = [name for name in functions if name not in own]
    code = [SPECIAL.get(name, "int %s(void) { return 0; }") % name for name in rest_of_them]
    rest, script = out / f"{library}.c", out / f"{library}.map"
    rest.write_text("\n".join(code) + "\n")
    # The provider asks for its functions by version, which is the library's name.
    script.write_text(f"{library} {{ global: *; }};\n")
    link = [f"-soname={library}"]
    if library != "libcuda.so.1":
        link.append(f"--version-script={script}")
    # nvcc knows where CUDA's headers are, and hands C on to the host's compiler.
    run(
        *("nvcc", "-cudart", "none", "-shared", "-Xcompiler", "-fPIC,-O1,-w", "-Xlinker"),
        *(",".join(link), "-o", out / library, *sources, rest),
    )


def main() -> None:
    """Build them all."""
    provider, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for library, functions in undefined(provider).items():
        build(library, functions, out)


if __name__ == "__main__":
    main()
