"""The product's own prompts, rendered for a source folder and compared with transformers.

A language model is only as good as the prompts that it gets. Every export renders the prompts that
`LlmRewriter` or `VlmCaptioner` will send, with hard queries, before anything is written. Without
transformers it checks that each text is in its prompt, that every id has an embedding, and that a
query forges no turn. With transformers it also compares the ids with those of AutoTokenizer and,
for a vision-language model, with the chat template that AutoProcessor prefers, before and after the
tokens of images are put in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from granalign_fast.errors import GranAlignError, one_line, short_repr
from granalign_fast.export.families import family_of
from granalign_fast.export.sources.folder import quiet
from granalign_fast.export.sources.language_model import ModelSource
from granalign_fast.export.sources.layouts import uniform_folder
from granalign_fast.export.sources.vision_language_model import VlmSource
from granalign_fast.language import prompts
from granalign_fast.language.llm_rewriter import LlmRewriter
from granalign_fast.language.prompt_start import PromptStart
from granalign_fast.models.chat import ChatTokenizer
from granalign_fast.models.chat_template import Message
from granalign_fast.models.image_layout import ImageLayout

_QUERIES = (
    "A man in a red coat walks his dog through the snow.",
    "Grüße aus Zürich: café, naïve, 10:45",
    "女の人が赤い傘を持って歩いている",
    "كلب يركض  बच्चा खेल रहा है",
    "a 👩‍👩‍👧 waves 🎉 e\u0301 \u00a0 \ufb01",
    "  two\tspaces \n\n and lines \n",
    "it's 1234567890 dollars -- 'quoted' \"text\" {x} [y] </z> \\n",
)
"""Queries whose ids differ where a tokenizer's steps do: accents, scripts, emoji, blanks."""
_FRAME_SECONDS = 0.5
"""Seconds from a frame of a clip to the next in prompts about clips: 6 frames of 3 s."""
_SPELLED = 8
"""How many of the control tokens are spelled out in a query."""
_TRIES = 3
"""How often prompts are rendered if they differ: the time in a template may change in between."""

_Source = TypeVar("_Source", bound=ModelSource)


def check_prompts(model: _Source, *, compare: bool | None = None) -> _Source:
    """Check the prompts of a source folder, and return the source with what had to be mended.

    Args:
        model: a language model or a vision-language model.
        compare: whether to compare with transformers; None to do so if it is installed.

    Returns:
        The model. If its ids are transformers' only with the settings that transformers applies, an
        export gets another ``tokenizer.json`` with these in it.

    Raises:
        GranAlignError: there is no chat template, it refuses or leaves out a text of our prompts, a
            token has no embedding, a query can forge a turn, or the ids are not transformers'.
    """
    vision = isinstance(model, VlmSource)
    tokenizer = ChatTokenizer(model.folder, processor=vision)
    if isinstance(model, VlmSource):
        model = cast("_Source", _with_clips(model, tokenizer))
    rendered = _render(model, tokenizer)
    _check_alone(model, rendered)
    model = replace(model, replaced=dict(model.replaced) | _moved_template(model.folder, rendered))
    if compare is None:
        compare = _has_transformers()
    if not compare:
        return model
    judge = _Judge.load(model)
    for _ in range(_TRIES):
        lines = judge.differences(rendered)
        if not lines:
            return model
        rendered = _render(model, ChatTokenizer(model.folder, processor=vision))
    return _mended(model, judge, lines)


@dataclass(frozen=True)
class _Rendered:
    """Prompts of a folder: the messages of each, and its ids."""

    tokenizer: ChatTokenizer
    prompts: list[tuple[list[Message], list[int]]] = field(default_factory=list)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, and record both."""
        ids = self.tokenizer.chat(messages)
        self.prompts.append((list(messages), ids))
        return ids


def _render(model: ModelSource, tokenizer: ChatTokenizer) -> _Rendered:
    """Render the prompts of every hard query, as the product does."""
    rendered = _Rendered(tokenizer)
    _send(model, rendered, _QUERIES)
    return rendered


def _send(model: ModelSource, rendered: _Rendered, queries: Sequence[str]) -> None:
    """Let the product make the prompts of queries for a model that only records them."""
    if not isinstance(model, VlmSource):
        recorder: Any = SimpleNamespace(chat=rendered.chat)
        LlmRewriter(recorder).prompt_ids(queries)
        return
    stand_in = _stand_in(model, rendered.chat, rendered.tokenizer)
    for frames in sorted(model.layouts):
        start = PromptStart(stand_in, frames, _FRAME_SECONDS if frames > 1 else 0.0)
        start.suffix(prompts.agnostic_caption(frames))
        for query in queries:
            start.suffix(prompts.aware_caption([query, "a dog"], frames))
            start.suffix(prompts.recognition(query, frames))


def _stand_in(model: VlmSource, chat: Callable[..., list[int]], tokenizer: ChatTokenizer) -> Any:
    """Return what takes the place of an exported model where prompts are made."""

    def layout(frames: int, seconds: float) -> ImageLayout:
        return model.layouts[frames].timed(seconds, tokenizer.encode)

    return SimpleNamespace(chat=chat, layout=layout)


def _with_clips(model: VlmSource, tokenizer: ChatTokenizer) -> VlmSource:
    """Return the model without layouts of clips for which its chat template has no place.

    Templates of models that were trained on single images alone have none for a video.

    Raises:
        GranAlignError: the template has a place, and writes other tokens there than the settings
            say, or it has no place for a single image.
    """
    stand_in = _stand_in(model, tokenizer.chat, tokenizer)
    kept = {}
    for frames, layout in sorted(model.layouts.items()):
        try:
            PromptStart(stand_in, frames, _FRAME_SECONDS)
            kept[frames] = layout
        except GranAlignError:
            _check_placeholder(model.folder, tokenizer, layout)
            if frames == 1:
                raise
    return replace(model, layouts=kept)


def _check_placeholder(folder: Path, tokenizer: ChatTokenizer, layout: ImageLayout) -> None:
    """Raise if a chat template writes other tokens for an image or a video than the settings say.

    A template that writes the same as for text alone has no place for it, and neither has one that
    writes a video as it writes an image.
    """
    # 1. Render the layout's content, text alone, and an image where the content is a video.
    content, placeholder = layout.content, list(layout.placeholder)
    system, user = prompts.about_clip("Describe it.", layout.frames, content)
    kinds = {content: user["content"], "text": user["content"][-1:]}
    kinds.setdefault("image", [{"type": "image"}, *kinds["text"]])
    ids: dict[str, list[int]] = {}
    for kind, parts in kinds.items():
        with suppress(GranAlignError):  # the template takes no such parts
            ids[kind] = tokenizer.chat([system, user | {"content": parts}])
    # 2. What only the content has.
    whole = ids.pop(content, [])
    only = set(whole).difference(*ids.values())
    starts = range(len(whole) - len(placeholder) + 1)
    if not only or any(whole[at : at + len(placeholder)] == placeholder for at in starts):
        return
    texts = {number: text for text, number in tokenizer.control_tokens.items()}
    expected = [f"{i} {texts.get(i, '')}".strip() for i in whole if i not in ids.get("text", ())]
    around = ", vision_start_token_id, vision_end_token_id" if len(placeholder) > 1 else ""
    raise GranAlignError(
        f"{folder / 'config.json'}: got {', '.join(map(str, placeholder))} for {content} tokens "
        f"({content}_token_id{around}), expected what the chat template writes, among "
        f"{', '.join(expected)}; correct the setting, or download the model again"
    )


def _check_alone(model: ModelSource, rendered: _Rendered) -> None:
    """Check what can be checked without transformers."""
    tokenizer, folder = rendered.tokenizer, model.folder
    for messages, ids in rendered.prompts:
        if not tokenizer.template.takes(messages):
            raise GranAlignError(
                f"{folder}: the chat template leaves out a text of the system or the user, "
                f"expected all of it in the prompt; correct the template, or choose another model"
            )
        if max(ids) >= model.shape.vocabulary:
            raise GranAlignError(
                f"{folder}: got the token {max(ids)} in a prompt, expected 0 to "
                f"{model.shape.vocabulary - 1}, as config.json says; the tokenizer is of another "
                f"model: download both again"
            )
    # Queries that spell control tokens: the prompt has those of the template and no other.
    harmless, hostile = _Rendered(tokenizer), _Rendered(tokenizer)
    _send(model, harmless, [_QUERIES[0]])
    spelled = list(tokenizer.control_tokens)[:_SPELLED]
    _send(model, hostile, [f"a dog {''.join(spelled)}\n{' x '.join(spelled)}"])
    # A word that the tokenizer does not know may have a special token, and forges nothing.
    numbers = set(tokenizer.control_tokens.values()) - {tokenizer.unknown}
    for (_, expected), (_, ids) in zip(harmless.prompts, hostile.prompts, strict=True):
        if [i for i in ids if i in numbers] != [i for i in expected if i in numbers]:
            raise GranAlignError(
                f"{folder}: the tokenizer takes a special token that a query spells out, such as "
                f"{short_repr(spelled[0])}, for its own; expected plain text; save the tokenizer "
                f"again with transformers, or report this model"
            )


def _moved_template(folder: Path, rendered: _Rendered) -> dict[str, str]:
    """Return the template as a file of an export, which has no folder of further templates."""
    if (folder / "additional_chat_templates").is_dir():
        return {"chat_template.jinja": rendered.tokenizer.template.source}
    return {}


def _has_transformers() -> bool:
    try:
        import transformers  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class _Judge:
    """transformers' tokenizer of a folder, and the chat template that it uses; None without one."""

    model: ModelSource
    tokenizer: Any
    template: str | None

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.model.folder

    @classmethod
    def load(cls, model: ModelSource) -> _Judge:
        """Load them.

        Raises:
            GranAlignError: transformers cannot load the tokenizer.
        """
        import transformers

        folder = model.folder
        with quiet():
            try:
                tokenizer = _load_tokenizer(folder)
            except Exception as error:  # a damaged or foreign file can raise anything
                raise GranAlignError(
                    f"{folder}: transformers {transformers.__version__} cannot load the tokenizer "
                    f"({one_line(error)}); copy or download the model again"
                ) from None
            template = _processor_template(folder) if isinstance(model, VlmSource) else None
        return cls(model, tokenizer, template)

    def differences(self, rendered: _Rendered) -> list[str]:
        """Return a line for each prompt whose ids are not transformers'.

        Raises:
            GranAlignError: transformers cannot render a prompt.
        """
        template = rendered.tokenizer.template
        # transformers 4.57 finds no template in some files of which we read one.
        own = None if self._has_template() else template.source
        lines = []
        for messages, ids in rendered.prompts:
            shaped, switches = template.arguments(messages)
            with quiet():
                try:
                    render = partial(
                        self.tokenizer.apply_chat_template,
                        shaped,
                        chat_template=self.template or own,
                        add_generation_prompt=True,
                        **switches,
                    )
                    expected = render(tokenize=True, return_dict=False)
                    layout = self._layout(messages)
                    whole = None if layout is None else self._expanded(render, layout)
                except Exception as error:  # a template can raise any Python error
                    raise GranAlignError(
                        f"{self.folder}: transformers cannot render our prompts "
                        f"({one_line(error)}); choose another model, or correct its chat template"
                    ) from None
            if ids != list(expected):
                lines.append(_difference(messages, ids, list(expected), self.tokenizer))
            elif layout is not None and (found := layout.expand(ids).ids) != whole:
                lines.append(_difference(messages, found, whole or [], self.tokenizer))
        return lines

    def _layout(self, messages: Sequence[Message]) -> ImageLayout | None:
        """Return the layout of the images of a conversation; None without any, or with a video."""
        if not isinstance(self.model, VlmSource):
            return None
        contents = [m["content"] for m in messages if isinstance(m["content"], list)]
        kinds = [part["type"] for content in contents for part in content]
        return None if "video" in kinds else self.model.layouts.get(kinds.count("image"))

    def _expanded(self, render: Callable[..., str], layout: ImageLayout) -> list[int]:
        """Return the ids of a prompt with all tokens of its images, as a processor expands it."""
        source = cast(VlmSource, self.model)
        image = self.tokenizer.convert_ids_to_tokens(source.image_token)
        peer, rendered = family_of(source).peer, render(tokenize=False)
        text = peer.expand(rendered, self.tokenizer, image, layout)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _has_template(self) -> bool:
        known = self.tokenizer.chat_template
        return isinstance(known, str) or (isinstance(known, dict) and "default" in known)


def _difference(messages: list[Message], ids: list[int], expected: list[int], judge: Any) -> str:
    """Return a line about the first place where the ids of a prompt differ."""
    pairs = enumerate(zip(ids, expected, strict=False))
    at = next((i for i, (ours, theirs) in pairs if ours != theirs), min(len(ids), len(expected)))
    tail = slice(max(at - 1, 0), at + 4)
    text = messages[-1]["content"]
    shown = text if isinstance(text, str) else text[-1]["text"]
    return (
        f"{len(ids)} for {len(expected)} tokens of {short_repr(shown[-40:])}, from token {at}: "
        f"{ids[tail]} for {expected[tail]} ({short_repr(judge.decode(expected[tail]))})"
    )


def _mended(model: _Source, judge: _Judge, lines: list[str]) -> _Source:
    """Return the model with transformers' own tokenizer, if its ids are then transformers'.

    Raises:
        GranAlignError: they still differ.
    """
    backend = getattr(judge.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        vision = isinstance(model, VlmSource)
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            texts = dict(model.replaced) | {"tokenizer.json": backend.to_str()}
            mended = replace(model, replaced=texts)
            folder.mkdir()
            mended.copy_files(folder)
            rendered = _render(mended, ChatTokenizer(folder, processor=vision))
            if not (lines := judge.differences(rendered)):
                _check_alone(mended, rendered)
                # Other ids make other answers, so the export gets another fingerprint.
                digest = hashlib.sha256((model.sha256 + texts["tokenizer.json"]).encode())
                return replace(mended, sha256=digest.hexdigest())
    raise GranAlignError(
        f"{model.folder}: the token ids of {len(lines)} prompts differ from transformers', such as "
        f"{lines[0]}; save the tokenizer again with transformers, or report this model"
    )


def _load_tokenizer(folder: Path) -> Any:
    """Load a folder's tokenizer with transformers, whichever version saved it."""
    from transformers import AutoTokenizer

    with uniform_folder(folder) as uniform:
        return AutoTokenizer.from_pretrained(uniform, local_files_only=True)


def _processor_template(folder: Path) -> str | None:
    """Return the chat template that AutoProcessor uses for a folder; None if it finds none."""
    from transformers import ProcessorMixin

    settings, _ = ProcessorMixin.get_processor_dict(folder, local_files_only=True)
    template = settings.get("chat_template")
    if isinstance(template, dict):
        template = template.get("default")
    return cast("str | None", template)
