"""Build stand-ins for the libraries that ONNX Runtime's CUDA provider loads, without a GPU.

``make cuda-provider`` calls it with the provider and the output folder. The CUDA runtime is
``runtime.c``. Every other function that the provider imports, from the runtime or another library,
succeeds and does nothing. This includes cuBLAS: matrix products are not computed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

RUNTIME = "libcudart.so.13"
# Functions whose result the provider uses: handles must not be null, cuDNN has a version, and
# cuBLAS finds no algorithm.
HEURISTICS = r"int %s(void *a, void *b, void *c, void *d, void *e, void *f, void *g, int most,"
SPECIAL = {
    "cublasCreate_v2": "int %s(void **handle) { static int all; *handle = &all; return 0; }",
    "cublasLtCreate": "int %s(void **handle) { static int all; *handle = &all; return 0; }",
    "cudnnCreate": "int %s(void **handle) { static int all; *handle = &all; return 0; }",
    "cudnnGetVersion": "unsigned long %s(void) { return 91000; }",
    "cublasLtMatmulAlgoGetHeuristic": HEURISTICS + " void *r, int *n) { *n = 0; return 0; }",
}


def run(*command: str | Path) -> str:
    """Run a command; return its output."""
    return subprocess.run(
        list(map(str, command)), check=True, capture_output=True, text=True
    ).stdout


def undefined(provider: Path) -> dict[str, list[str]]:
    """Return the functions that the provider imports, by library."""
    functions: dict[str, list[str]] = {
        name: [] for name in re.findall(r"\[(libcu\S+)\]", run("readelf", "-d", provider))
    }
    for line in run("nm", "-D", "--undefined-only", provider).splitlines():
        name, _, library = line.split()[-1].partition("@")
        if library in functions:
            functions[library].append(name)
        elif not library and re.match("cu[A-Z]", name):
            functions["libcuda.so.1"].append(name)
    # The provider loads cuDNN lazily, and looks up its functions by name.
    functions["libcudnn.so.9"] = sorted(
        {name.decode() for name in re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", provider.read_bytes())}
    )
    return functions


def build(library: str, functions: list[str], out: Path) -> None:
    """Compile a library with the given functions."""
    sources, defined = [], set()
    if library == RUNTIME:
        sources.append(Path(__file__).with_name("runtime.c"))
        defined = set(re.findall(r"^[a-z].*?\b(\w+)\(", sources[0].read_text(), re.MULTILINE))
    # Functions without a definition return 0, which means success.
    missing = [name for name in functions if name not in defined]
    code = [SPECIAL.get(name, "int %s(void) { return 0; }") % name for name in missing]
    rest, script = out / f"{library}.c", out / f"{library}.map"
    rest.write_text("\n".join(code) + "\n")
    # The provider imports versioned symbols; the version is the library's name.
    script.write_text(f"{library} {{ global: *; }};\n")
    link = [f"-soname={library}"]
    if library != "libcuda.so.1":
        link.append(f"--version-script={script}")
    # nvcc knows the path of CUDA's headers; it passes C files on to the host's compiler.
    run(
        *("nvcc", "-cudart", "none", "-shared", "-Xcompiler", "-fPIC,-O1,-w", "-Xlinker"),
        *(",".join(link), "-o", out / library, *sources, rest),
    )


def main() -> None:
    """Build all libraries."""
    provider, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    for library, functions in undefined(provider).items():
        build(library, functions, out)


if __name__ == "__main__":
    main()
