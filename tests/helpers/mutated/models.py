"""Exported models and models as published: valid folders, and how they are read."""

from __future__ import annotations

import shutil
from pathlib import Path

from .case import all_of, repair_manifest

# Models.

TEXTS = ["a red car", "", "The dog runs. " * 9]


def write_encoder(folder: Path) -> None:
    from granalign_fast import export_sentence_encoder
    from helpers.tiny_bert import write_tiny_bert

    write_tiny_bert(folder / "source")
    export_sentence_encoder(folder / "source", folder / "a", check=False)
    shutil.rmtree(folder / "source")


def repair_model(folder: Path) -> None:
    repair_manifest(folder / "a")


def read_encoder(folder: Path) -> object:
    from granalign_fast.models.sentence_encoder import OnnxSentenceEncoder

    return OnnxSentenceEncoder(folder / "a", threads=1).encode(TEXTS)


def write_clip(folder: Path) -> None:
    from helpers.tiny_clip import write_tiny_export

    write_tiny_export(folder / "a")


def read_clip(folder: Path) -> object:
    import numpy as np

    from granalign_fast import FrameEncoder

    encoder = FrameEncoder(folder / "a", threads=1)
    return encoder.encode_frames([np.zeros((40, 60, 3), np.uint8)]), encoder.encode_texts(["cat"])


def write_llm(folder: Path) -> None:
    from helpers.tiny_llm import write_unchecked

    write_unchecked(folder)
    (folder / "out").rename(folder / "a")
    shutil.rmtree(folder / "source")


MESSAGES = [
    {"role": "system", "content": "Rewrite."},
    {"role": "user", "content": "a red <eos> car"},
]


def read_llm(folder: Path) -> object:
    from granalign_fast import CausalLM

    model = CausalLM(folder / "a", threads=1)
    return model.decode(model.generate([model.chat(MESSAGES)], max_new_tokens=3)[0])


def write_vlm(folder: Path) -> None:
    from helpers.tiny_vlm import write_unchecked_vlm

    write_unchecked_vlm(folder)
    (folder / "out").rename(folder / "a")
    shutil.rmtree(folder / "source")


def read_vlm(folder: Path) -> object:
    from granalign_fast import VisionLanguageModel, VlmCaptioner
    from granalign_fast.types import FrameSet, frame_hash
    from helpers.tiny_vlm import frames_of

    frames = list(frames_of(1))
    captioner = VlmCaptioner(VisionLanguageModel(folder / "a", threads=1))
    held = FrameSet(tuple(map(frame_hash, frames)), lambda numbers: [frames[i] for i in numbers])
    return captioner.agnostic(held)


def write_tokenizer(folder: Path) -> None:
    from helpers.tiny_bert import write_tiny_bert
    from helpers.tiny_llm import write_tiny_llm

    write_tiny_bert(folder / "bert")
    write_tiny_llm(folder / "llm")
    for path in folder.glob("*/*"):
        if not path.name.startswith("tokenizer"):
            path.unlink() if path.is_file() else shutil.rmtree(path)


def read_tokenizer(folder: Path) -> object:
    from granalign_fast.models.chat import ChatTokenizer
    from granalign_fast.models.encoder import load_tokenizer, tokenise

    tokenise(load_tokenizer(folder / "bert"), TEXTS)
    chat = ChatTokenizer(folder / "llm")
    return chat.decode(chat.chat(MESSAGES))


def write_templates(folder: Path) -> None:
    from helpers import tiny_llm

    for name in ("CHAT_TEMPLATE", "LLAMA_TEMPLATE", "QWEN_TEMPLATE"):
        (folder / f"{name}.jinja").write_text(getattr(tiny_llm, name))


def read_templates(folder: Path) -> object:
    from granalign_fast.models.chat_template import ChatTemplate

    def render(path: Path) -> str:
        source = path.read_bytes().decode("utf-8", "replace")
        template = ChatTemplate(source, {"bos_token": "<bos>", "eos_token": "<eos>"}, path.name)
        return template.render(*template.arguments(MESSAGES))

    return all_of(*(lambda path=path: render(path) for path in sorted(folder.iterdir())))


def write_graph(folder: Path) -> None:
    write_encoder(folder)
    for path in list((folder / "a").iterdir()):
        if path.suffix != ".onnx":
            path.unlink()


def read_graph(folder: Path) -> object:
    import numpy as np

    from granalign_fast.runtime.session import open_session

    ids = np.ones((2, 5), np.int32)
    session = open_session(folder / "a" / "model.onnx", threads=1)
    arrays = dict.fromkeys(session.inputs, ids)
    return session(**arrays)


# Models as published.


def write_bert_source(folder: Path) -> None:
    from helpers.tiny_bert import write_tiny_bert

    write_tiny_bert(folder / "a")


def read_bert_source(folder: Path) -> object:
    from granalign_fast import export_sentence_encoder

    return export_sentence_encoder(folder / "a", folder / "out", check=False)


def write_llm_source(folder: Path) -> None:
    from helpers.tiny_llm import LLAMA, write_tiny_llm

    write_tiny_llm(folder / "a", LLAMA | {"num_hidden_layers": 1})


def read_llm_source(folder: Path) -> object:
    from granalign_fast import export_llm

    return export_llm(folder / "a", folder / "out", check=False)


def write_clip_source(folder: Path) -> None:
    from helpers.tiny_clip import write_clip_source

    write_clip_source(folder / "a", "clip", layers=1)


def read_clip_source(folder: Path) -> object:
    from granalign_fast import export_clip

    return export_clip(folder / "a", folder / "out", check=False)
