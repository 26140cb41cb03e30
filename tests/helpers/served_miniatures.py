"""The package's miniatures behind OpenAI's chat API: a server for trips from end to end.

The server reads nothing of a request but its messages, and answers by token ids and logits.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from granalign_fast.language.captioner import VlmCaptioner
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.miniatures import MODELS
from granalign_fast.pipeline import ModelFolder

from .model_server import Reply, Request, chat_reply


@functools.cache
def miniatures() -> ModelFolder:
    """The models, loaded once.

    Call it before a request: Python 3.11 locks a property while it is computed, and the client may
    compute the same one.
    """
    models = ModelFolder(MODELS)
    assert models.captioner is not None and models.rewriter is not None
    return models


def answer(request: Request) -> Reply:
    """Answer by the language model, or by the vision-language model if there is a picture."""
    body = request.body
    messages, pictures = _read(body["messages"])
    models = miniatures()
    assert isinstance(models.captioner, VlmCaptioner) and isinstance(models.rewriter, LlmRewriter)
    if pictures:
        (frame,) = pictures
        model: Any = models.captioner.model
        start = models.captioner.start
        ids = model.chat(messages)
        assert ids[: len(start)] == start, "the prompt begins with the system message and the frame"
        prompt, prefix = ids[len(start) :], model.prefill_frames([frame], start)
    else:
        model = models.rewriter.model
        prompt, prefix = model.chat(messages), None
    if body.get("logprobs"):
        (logits,) = model.logits([prompt], prefix=prefix).astype(np.float64)
        logprobs = logits - logits.max()
        logprobs -= np.log(np.exp(logprobs).sum())
        top = np.argsort(-logprobs)[: body["top_logprobs"]]
        return chat_reply("?", odds={model.decode([int(i)]): float(logprobs[i]) for i in top})
    limit = body["max_tokens"]
    (out,) = model.generate([prompt], prefix=prefix, max_new_tokens=limit)
    return chat_reply(model.decode(out), finish="length" if len(out) >= limit else "stop")


def _read(messages: Sequence[Any]) -> tuple[list[Any], list[npt.NDArray[np.uint8]]]:
    """Return the messages as the models take them, and the pictures in them."""
    pictures, shaped = [], []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, list):
            for part in parts:
                if part["type"] == "image_url":
                    head, _, content = part["image_url"]["url"].partition(",")
                    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
                    picture = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
                    pictures.append(np.asarray(picture.convert("RGB")))
            parts = [{"type": "image"} if part["type"] == "image_url" else part for part in parts]
        shaped.append(message | {"content": parts})
    return shaped, pictures
