"""Sessions on CUDA: the options they pass to ONNX Runtime, and encoders as CUDA graphs."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from helpers import fake_cupy
from helpers.captures import ARRAY_DEVICES, graph_run, ids_of
from helpers.tiny_bert import write_tiny_bert
from helpers.tiny_llm import CONFIGS, extension_of, write_unchecked
from helpers.tiny_vlm import CONFIGS as VLM_CONFIGS
from helpers.tiny_vlm import write_unchecked_vlm

from granalign_fast.errors import GranAlignError
from granalign_fast.models.exported_graph import fixed_batches, open_session
from granalign_fast.pipeline import SentenceEncoder
from granalign_fast.runtime.capture_lock import CAPTURE_LOCK
from granalign_fast.runtime.cuda_graphs import GraphRun
from granalign_fast.runtime.node_profile import nodes_by_provider, read_profile, strays
from granalign_fast.runtime.onnx_run import OnnxRun

CUDA = "CUDAExecutionProvider"
SETTINGS = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "use_tf32": "0",
}


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported sentence encoder."""
    folder = tmp_path_factory.mktemp("sentences")
    cache = folder / "cache"
    encoder = SentenceEncoder(write_tiny_bert(folder / "tiny"), cache_dir=cache)
    return cache / encoder.fingerprint / "model.onnx"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported decoder of a language model."""
    folder = tmp_path_factory.mktemp("llm")
    return write_unchecked(folder, CONFIGS["llama-gqa-untied"]) / "static.onnx"


@pytest.fixture
def cuda_options(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The provider options of each session that is opened for CUDA; it computes on the CPU."""
    real, opened = onnxruntime.InferenceSession, []

    def open_on_cpu(
        path: Path, options: Any, providers: list[tuple[str, dict[str, str]]], enable_fallback: int
    ) -> Any:
        ((provider, provider_options),) = providers
        assert provider == CUDA and not enable_fallback and CAPTURE_LOCK._readers
        try:
            separate = options.get_session_config_entry(
                "session.use_device_allocator_for_initializers"
            )
        except Exception:  # the entry is not set
            separate = "0"
        assert separate == ("0" if "gpu_mem_limit" in provider_options else "1")
        opened.append(provider_options)
        session = real(path, options, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(session, "get_providers", lambda: [CUDA, "CPUExecutionProvider"])
        return session

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_on_cpu)
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy)
    return opened


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", {}, {}),
        ("cuda:3", {}, {"device_id": "3"}),
        ("cuda", {"memory_limit_bytes": 3 << 30}, {"gpu_mem_limit": str(3 << 30)}),
        ("cuda:1", {"stream": SimpleNamespace(ptr=4711)},
         {"device_id": "1", "user_compute_stream": "4711"}),
        ("cuda", {"stream": SimpleNamespace(ptr=4711), "capturable": True},
         {"enable_cuda_graph": "1", "user_compute_stream": "4711"}),
        ("cuda", {"capturable": True}, {}),
        ("cuda", {"stream": SimpleNamespace(ptr=4711), "capturable": True, "profile": True},
         {"user_compute_stream": "4711"}),
    ],
)  # fmt: skip
def test_the_options_of_a_decoder(
    cuda_options: list[dict[str, str]],
    decoder: Path,
    device: str,
    options: Any,
    expected: dict[str, str],
) -> None:
    session = open_session(decoder, device=device, **options)
    assert cuda_options == [SETTINGS | expected]
    assert session.backend == CUDA and isinstance(session._run, OnnxRun)
    assert session._run.stream is options.get("stream")
    assert session.capturable == ("enable_cuda_graph" in expected)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1"])
def test_invalid_memory_limits(
    cuda_options: list[dict[str, str]], decoder: Path, limit: Any
) -> None:
    with pytest.raises(GranAlignError, match=r"memory_limit_bytes: got .*, expected a positive"):
        open_session(decoder, device="cuda", memory_limit_bytes=limit)


def test_the_options_of_an_encoder(cuda_options: list[dict[str, str]], sentences: Path) -> None:
    session = open_session(sentences, device="cuda:0", memory_limit_bytes=1 << 20)
    options = {"device_id": "0", "gpu_mem_limit": str(1 << 20)}
    assert cuda_options == [SETTINGS | options | {"enable_cuda_graph": "1"}]
    assert isinstance(session._run, GraphRun)
    cuda_options.clear()
    stream = SimpleNamespace(ptr=5)
    for more in ({"profile": True}, {"stream": stream}):
        assert isinstance(open_session(sentences, device="cuda", **more)._run, OnnxRun)
    assert not any("enable_cuda_graph" in opened for opened in cuda_options)


def test_an_encoder_that_cannot_be_captured_runs_plainly(
    cuda_options: list[dict[str, str]], sentences: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_plain = onnxruntime.InferenceSession

    def refuse_graphs(path: Path, options: Any, providers: Any, enable_fallback: int) -> Any:
        if "enable_cuda_graph" in providers[0][1]:
            raise RuntimeError("This session cannot use the graph capture feature")
        return open_plain(path, options, providers=providers, enable_fallback=enable_fallback)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse_graphs)
    session = open_session(sentences, device="cuda")
    assert isinstance(session._run, OnnxRun) and cuda_options == [SETTINGS]
    assert session(input_ids=ids_of(2, 3))["embeddings"].shape[0] == 2


@pytest.mark.parametrize("device", sorted(ARRAY_DEVICES))
def test_graphs_equal_plain_runs(sentences: Path, device: str) -> None:
    run, session = graph_run(sentences, device)
    plain = open_session(sentences)
    results, batches = [], []
    for turn in range(3):
        for rows, tokens in ((1, 5), (3, 5), (16, 5), (40, 5), (9, 7), (0, 5)):
            batches.append(ids_of(rows, tokens, seed=turn))
            results.append(run({"input_ids": batches[-1]})["embeddings"])
    # Compared after all runs: a result that was a view of a buffer would be overwritten by now.
    for ids, rows in zip(batches, results, strict=True):
        assert type(rows) is np.ndarray and rows.shape == (len(ids), rows.shape[1])
        if len(ids):
            np.testing.assert_allclose(rows, plain(input_ids=ids)["embeddings"], atol=1e-6)
    # All three batch sizes for 5 tokens, one for 7 tokens: 9 rows fill more than half of 16.
    assert run.captured == len(session.graphs) == 4 and run.refused is None
    for graph in session.graphs.values():
        assert graph.pointers.keys() == {"input_ids", "embeddings"}
    assert len({p for g in session.graphs.values() for p in g.pointers.values()}) == 8
    assert len(session.threads) == 1 and threading.get_ident() not in session.threads


@pytest.mark.parametrize(
    ("kind", "graph", "sizes"),
    [
        ("sentence-encoder", "model.onnx", (16, 64, 256, 1024)),
        ("clip", "image.onnx", (1, 4, 16, 64)),
        ("sentence-encoder", "packed.onnx", None),
        ("llm", "model.onnx", None),
    ],
)
def test_batch_sizes_of_runs(kind: str, graph: str, sizes: tuple[int, ...] | None) -> None:
    """Texts have no small batch size: a few texts take as long as one. Images have all sizes."""
    assert fixed_batches({"kind": kind}, graph) == sizes


def test_the_second_run_of_a_shape_is_captured(sentences: Path) -> None:
    run, session = graph_run(sentences, "CuPy")
    for tokens in (5, 6, 5, 5, 7, 6):
        run({"input_ids": ids_of(4, tokens)})
    assert session.ids == [-1, -1, 1, 1, -1, 2]
    assert session.exclusive == [False, False, True, False, False, True]


def test_after_a_failed_capture_all_runs_are_plain(sentences: Path) -> None:
    run, session = graph_run(sentences, "CuPy", refuse=2)
    plain = open_session(sentences)
    for tokens in (5, 6, 5, 6, 5, 6):
        ids = ids_of(3, tokens)
        rows = run({"input_ids": ids})["embeddings"]
        np.testing.assert_allclose(rows, plain(input_ids=ids)["embeddings"], atol=1e-6)
    assert session.ids == [-1, -1, 1, 2] and run.captured == 0
    why = "operation not permitted when stream is capturing"
    assert run.refused == f"model.onnx: cannot be captured ({why})"
    assert run.session is not session and run.session.ids == [0, 0, 0]


def test_graphs_are_bounded(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("granalign_fast.runtime.cuda_graphs._SLOTS", 2)
    run, session = graph_run(sentences, "CuPy")
    for _ in range(2):
        for tokens in (3, 4, 5):
            run({"input_ids": ids_of(2, tokens)})
    assert session.ids == [-1, -1, -1, 1, 2, -1]


def test_threads_take_turns(sentences: Path) -> None:
    run, session = graph_run(sentences, "CuPy")
    plain, batches = open_session(sentences), [ids_of(1 + i % 7, 5, seed=i) for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda ids: run({"input_ids": ids})["embeddings"], batches))
    for ids, rows in zip(batches, results, strict=True):
        np.testing.assert_allclose(rows, plain(input_ids=ids)["embeddings"], atol=1e-6)
    assert len(session.threads) == 1


def test_wrong_inputs_are_refused_in_one_line(sentences: Path) -> None:
    run, _ = graph_run(sentences, "NumPy")
    with pytest.raises(GranAlignError, match=r"model\.onnx: .*Unexpected input data type"):
        run({"input_ids": np.zeros((2, 3), np.float32)})
    with pytest.raises(GranAlignError, match=r"got arrays of \[1, 2\] rows"):
        run({"input_ids": ids_of(2, 3), "attention_mask": ids_of(1, 3)})


# Profiles: which provider runs which node.


def test_a_profile_names_the_provider_of_each_node(decoder: Path) -> None:
    session = open_session(decoder, profile=True)
    inputs = extension_of(session, 3, 20, 4)
    expected = open_session(decoder)(**inputs)
    for _ in range(2):
        np.testing.assert_array_equal(session(**inputs)["logits"], expected["logits"])
    nodes = session.nodes()
    attention = [node for node in nodes if node.operator == "Attention"]
    assert len(attention) == 3, "one for each layer"
    assert all(node.runs == 2 and node.seconds > 0 for node in attention)
    assert set(nodes_by_provider(nodes)) == {"CPUExecutionProvider"}
    assert strays(nodes, "CPUExecutionProvider") == []
    assert {node.operator for node in strays(nodes, CUDA)} >= {"Attention", "MatMul"}
    with pytest.raises(GranAlignError, match="got no profile"):
        session.nodes()


def test_copies_are_strays_and_shapes_are_not(tmp_path: Path) -> None:
    def node(name: str, operator: str, provider: str) -> str:
        return (
            f'{{"cat": "Node", "name": "{name}_kernel_time", "dur": 5, '
            f'"args": {{"op_name": "{operator}", "provider": "{provider}"}}}}'
        )

    events = [
        '{"cat": "Session", "name": "model_run", "dur": 3}',
        node("a", "Attention", CUDA),
        node("b", "Shape", "CPUExecutionProvider"),
        node("c", "MemcpyToHost", CUDA),
        node("d", "Gemm", "CPUExecutionProvider"),
        '{"cat": "Node", "name": "d_fence_before", "dur": 1, "args": {"op_name": "Gemm"}}',
    ]
    path = tmp_path / "profile.json"
    path.write_text(f"[{','.join(events)}]")
    nodes = read_profile(path)
    assert [node.name for node in nodes] == ["a", "b", "c", "d"]
    assert [node.name for node in strays(nodes, CUDA)] == ["c", "d"]
    assert len(nodes_by_provider(nodes)[CUDA]) == 2
    path.write_text("{}")
    with pytest.raises(GranAlignError, match="expected a profile of ONNX Runtime"):
        read_profile(path)


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    """The graphs that a model loads on a GPU have no tensor in common."""
    folder = write_unchecked_vlm(tmp_path, VLM_CONFIGS["saved-mha-untied"])
    seen: dict[tuple[str, ...], str] = {}
    for name in ("vision.onnx", "static.onnx"):
        graph = onnx.load(folder / name, load_external_data=False).graph
        for tensor in graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                location = tuple(entry.value for entry in tensor.external_data)
                assert location not in seen, f"{tensor.name} in {seen[location]} and {name}"
                seen[location] = name
    assert len(set(seen.values())) == 2
