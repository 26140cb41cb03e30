"""One way to read, one way to write: no other call of the package opens a file by its name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("granalign_fast", "kernels", "export")
LINKS = ("bench", "export", "kernels")
"""Links in the package; `bench` only measures, and reads what it wrote itself."""

METHODS = {
    "read_text",
    "read_bytes",
    "write_text",
    "write_bytes",
    "touch",
    "memmap",
    "memory_map",
    "from_file",
    "load_file",
    "save_file",
    "safe_open",
    "fromfile",
    "tofile",
    "loadtxt",
    "read_table",
    "InferenceSession",
    "read_index",
    "copyfile",
    "copytree",
    "copy2",
    "ZipFile",
    "truetype",
}
"""Names of functions and methods that open a file, whatever they belong to."""
MODULES = ("np", "onnx", "torch", "gzip", "os", "io", "Image", "av", "shutil", "tarfile")
"""Modules of whose functions `open`, `load`, `save`, `copy` and `fdopen` open a file."""
FUNCTIONS = {"open", "load", "save", "copy", "fdopen"}

_DRAFT = "writes into a folder of `appearing`, which becomes visible when it is whole"
_SYSTEM = "a file of the system or of this package"
ALLOWED = {
    # The two ways themselves.
    ("granalign_fast/reading.py", "os.open"): "the way to read",
    ("granalign_fast/files.py", "path.open"): "the way to write, to a device",
    ("granalign_fast/files.py", "temporary.open"): "the way to write",
    ("granalign_fast/files.py", "mark.touch"): "an empty file in a private folder",
    # The standard streams, where the caller has closed them.
    ("granalign_fast/cli/streams.py", "os.open"): "the null device",
    ("granalign_fast/cli/streams.py", "open"): "a descriptor that is open",
    # Folders, to lock them or to wait until their names are on disk.
    ("granalign_fast/files.py", "os.open"): "a folder",
    ("granalign_fast/index/work_folder.py", "os.open"): "a folder",
    ("granalign_fast/library/locks.py", "os.open"): "a folder that was checked",
    ("granalign_fast/library/durable.py", "os.open"): "a folder that was made here",
    ("granalign_fast/server/jobs.py", "os.open"): "a folder",
    ("granalign_fast/server/indexing.py", "os.open"): "a folder",
    # Libraries that open files by name, after a check, or that get an open file.
    ("granalign_fast/library/approximate.py", "faiss.read_index"): "after checked_file and a mark",
    ("granalign_fast/library/segment.py", "np.memmap"): "gets an open file",
    ("granalign_fast/library/segment.py", "pyarrow.memory_map"): "after checked_file",
    ("granalign_fast/library/durable.py", "path.open"): "a new file in a folder made here",
    ("granalign_fast/library/codes.py", "np.memmap"): "a file that was just made here",
    ("granalign_fast/library/remote_library.py", "shutil.copytree"): "a segment of the own cache",
    ("granalign_fast/library/remote_library.py", "shutil.copy2"): "a segment of the own cache",
    ("granalign_fast/server/uploads.py", "().open"): "a new file in a draft folder made here",
    ("kernels/corpus_codes.py", "onnxruntime.InferenceSession"): "a graph in memory",
    ("granalign_fast/runtime/session_loader.py", "onnxruntime.InferenceSession"): "after a check",
    ("granalign_fast/evaluation/submission.py", "zipfile.ZipFile"): "gets an open file",
    ("granalign_fast/video/container.py", "av.open"): "after a check; see test_videos.py",
    ("granalign_fast/video/cutting.py", "av.open"): "gets a file of `replacing`",
    ("granalign_fast/video/cut_containers.py", "av.open"): "writes to memory",
    ("granalign_fast/miniatures/videos.py", "av.open"): "gets a file of `replacing`",
    ("granalign_fast/miniatures/scenes.py", "Image.open"): "reads from memory",
    ("export/sources/checkpoint.py", "np.memmap"): "gets an open file",
    ("export/checks/vlm_reference.py", "safe_open"): "after checked_file",
    ("export/checks/encoder_tokens.py", "shutil.copy"): "after checked_file",
    ("export/sources/language_model.py", "shutil.copyfile"): "after checked_file",
    ("export/triton.py", "shutil.copyfile"): "after checked_file",
    ("export/tensorrt.py", "shutil.copy2"): "after checked_file",
    ("export/tensorrt.py", "shutil.copytree"): "the engines of a folder; links are kept as links",
    # Not files: the models of a service, an object of a store.
    ("granalign_fast/server/app.py", "service.open"): "no file",
    ("granalign_fast/server/service.py", "self.engine.open"): "no file",
    ("granalign_fast/video/remote_frames.py", "store.open"): "no file",
    # The system, and what this package brings or makes.
    ("granalign_fast/runtime/own_mark.py", "os.open"): "a new key in a private folder",
    ("granalign_fast/runtime/own_mark.py", "open"): "the same",
    ("granalign_fast/server/app.py", "Path().write_text"): "a temporary file of the parent process",
    ("granalign_fast/server/page.py", "entry.read_bytes"): _SYSTEM,
    ("granalign_fast/cli/app.py", "os.open"): "/dev/null",
    ("granalign_fast/errors.py", "distribution().read_text"): _SYSTEM,
    ("granalign_fast/runtime/mapped_pages.py", "_MAPS.read_bytes"): _SYSTEM,
    ("granalign_fast/runtime/probe.py", "onnx.save"): "a temporary folder",
    ("granalign_fast/output/contact_sheet.py", "ImageFont.truetype"): "a font of the system",
    ("granalign_fast/output/report.py", "files().joinpath().read_text"): _SYSTEM,
    ("granalign_fast/miniatures/training.py", "torch.load"): "a checkpoint of its own training",
    ("granalign_fast/miniatures/training.py", "torch.save"): "a checkpoint of its own training",
    ("kernels/launch.py", "().read_text"): _SYSTEM,
    # Exports.
    ("export/checks/encoder_tokens.py", "().write_text"): "a temporary folder",
    ("export/checks/lean_session.py", "onnxruntime.InferenceSession"): "a graph of the draft",
    ("export/checks/self_check.py", "path.write_bytes"): "a temporary folder",
    ("export/frame_encoder.py", "().write_text"): _DRAFT,
    ("export/graphs/clip_towers.py", "data.open"): _DRAFT,
    ("export/graphs/clip_towers.py", "path.open"): _DRAFT,
    ("export/graphs/clip_towers.py", "path.write_bytes"): _DRAFT,
    ("export/llm.py", "().open"): _DRAFT,
    ("export/llm.py", "().write_bytes"): _DRAFT,
    ("export/optimum/ort_vlm.py", "InferenceSession"): "of optimum, which opens its files itself",
    ("export/optimum/stock_decoder.py", "onnx.load"): "what optimum wrote into the draft",
    ("export/optimum/stock_encoder.py", "onnx.load"): "what optimum wrote into the draft",
    ("export/optimum/stock_encoder.py", "onnx.save"): _DRAFT,
    ("export/sentence_encoder.py", "().open"): _DRAFT,
    ("export/sentence_encoder.py", "().write_bytes"): _DRAFT,
    ("export/sentence_encoder.py", "().write_text"): _DRAFT,
    ("export/sentence_encoder.py", "spool.open"): _DRAFT,
    ("export/sources/language_model.py", "().write_text"): _DRAFT,
    ("export/sources/layouts.py", "path.write_text"): "a temporary folder",
    ("export/tensorrt.py", "path.write_bytes"): _DRAFT,
    ("export/triton.py", "().write_text"): _DRAFT,
    ("export/vlm.py", "().open"): _DRAFT,
    ("export/vlm.py", "path.write_bytes"): _DRAFT,
}
"""The file and the call of each other way, and the reason why it is none."""


def dotted(node: ast.expr) -> str:
    """The text of a function: names and attributes; a call or an operation is ``()``."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{dotted(node.func)}()"
    return "()"


def opens_a_file(call: ast.Call) -> bool:
    base, _, name = dotted(call.func).rpartition(".")
    if not base:
        return name == "open" or name in METHODS - {"read_text", "read_bytes"}
    if name in METHODS:
        return True
    if base in MODULES:
        return name in FUNCTIONS
    # A path's method: it has no arguments, or a mode.
    first = call.args[0] if call.args else None
    mode = first.value if isinstance(first, ast.Constant) else None
    is_mode = isinstance(mode, str) and set(mode) <= set("rwxabt+")
    return name == "open" and (is_mode or not (call.args or call.keywords))


def calls(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and opens_a_file(node):
            yield dotted(node.func)


def found() -> set[tuple[str, str]]:
    places = set()
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT)
            if folder == "granalign_fast" and name.parts[1] in LINKS:
                continue
            places |= {(str(name), call) for call in calls(path.read_text(encoding="utf-8"))}
    return places


def test_no_other_way() -> None:
    places = found()
    assert not sorted(places - ALLOWED.keys()), "read by reading.py, write by files.replacing"
    assert not sorted(ALLOWED.keys() - places), "this is not in the code any more"


def test_all_ways_are_seen() -> None:
    """The test of the test."""
    ways = (
        "open(p)",
        "p.open()",
        "p.open('rb')",
        "(a / b).open('wb')",
        "p.read_text()",
        "np.load(p)",
        "numpy.memmap(p)",
        "Tokenizer.from_file(p)",
        "gzip.open(p)",
        "onnxruntime.InferenceSession(p)",
        "Path(p).read_bytes()",
    )
    for way in ways:
        assert len(list(calls(way))) == 1, way
    for other in ("Library.open(p)", "json.load", "VideoIndex.load(p)", "self.open(a, b)"):
        assert not list(calls(other)), other
