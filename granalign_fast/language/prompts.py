"""The prompts of the language model and of the vision-language model.

All rewriting tasks have the same system message, so that its keys and values are computed once. A
task is a sentence or two at the beginning of the user's message. Each granularity has three tasks:
m = 3 in the paper (GranAlign, arXiv 2601.00584, section 3), which does not publish its prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from granalign_fast.errors import GranAlignError, short_repr

SYSTEM = """\
You rewrite sentences that people type to find a moment in a video. A rewrite is compared with \
captions of single frames, such as "a man in a blue shirt is driving a car". So name what can be \
seen: people, animals, things, places, actions. Write plain English in the present tense. Never \
add a fact that the sentence does not state or plainly imply, and never explain yourself. Answer \
with the rewrite alone: one line, no quotation marks, no list.\
"""

SIMPLIFIED = (
    "Rewrite this sentence with common words. Keep who or what it is about and what happens; leave "
    "out incidental detail.",
    "Say this in as few simple words as you can, as a caption of one frame would: the subject, the "
    "action, the main object.",
    "Rewrite this sentence more generally: replace names, brands and rare words by what they are.",
)

DETAILED = (
    "Rewrite this sentence more precisely. Keep every detail and its own words for things, and "
    "name the posture, the place and the objects that it implies.",
    "Rewrite this sentence so that it tells what is seen just before, during and just after the "
    "moment, as far as the sentence implies it.",
    "Describe the moment of this sentence as a careful observer would: who, what exactly they do, "
    "with what, where.",
)

ENTITIES = (
    "List what this sentence is about, in two lines. First line: 'entities:' and the people, "
    "animals and things, separated by commas. Second line: 'actions:' and the verbs, separated by "
    "commas."
)


REWRITING_TASKS = (*SIMPLIFIED, *DETAILED, ENTITIES)
"""The tasks of one query."""


def user_message(task: str, query: str) -> str:
    """Return the user's message: the task, then the query."""
    return f"{task}\nSentence: {query}"


def rewriting(task: str, query: str) -> list[dict[str, Any]]:
    """Return the messages of a rewriting task."""
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": user_message(task, query)},
    ]


# The vision-language model sees one frame, or the frames of a clip. All three tasks begin with the
# same system message and the frames, so that their prefix is computed once and serves every query.

VISION_SYSTEM = "You describe single frames of a video."
CLIP_SYSTEM = "You describe short clips of a video."

AGNOSTIC_CAPTION = (
    "Describe this frame in one sentence: who or what is in it, what happens, and where."
)


def agnostic_caption(frames: int = 1) -> str:
    """Return the task of a caption of a clip of so many frames, without a query."""
    return _of_clip(AGNOSTIC_CAPTION, frames)


def aware_caption(focus: Sequence[str], frames: int = 1) -> str:
    """Return the task of a caption that is guided by the entities and actions of a query.

    It is about a clip of so many frames. It says to mention only what is there: the embedding of a
    caption such as "there is no dog" is near every query about dogs.

    Raises:
        GranAlignError: there is no focus, or a part of it is blank.
    """
    if not focus or not all(text.strip() for text in focus):
        raise GranAlignError(
            f"focus: got {short_repr(list(focus))}, expected what to look for; give the query "
            f"itself if nothing is known about it"
        )
    names = ", ".join(focus)
    task = _of_clip("Describe this frame in one sentence, in detail where it shows any of", frames)
    return f"{task} these: {names}. Mention only what is there."


YES, NO = ("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No")
"""The words whose first tokens answer a recognition prompt: with and without a space before them,
because tokenizers differ."""


def recognition(query: str, frames: int = 1) -> str:
    """Return a question about a query and a clip; its answer begins with "yes" or "no"."""
    question = _of_clip("Does this frame show the following?", frames)
    return f"{question} {query}\nAnswer yes or no."


def _of_clip(task: str, frames: int) -> str:
    """Return a task about a frame as one about a clip of so many frames."""
    return task if frames == 1 else task.replace("this frame", "this clip")


def about_clip(task: str, frames: int, content: str) -> list[dict[str, Any]]:
    """Return the messages of a task about a clip.

    Args:
        task: what is asked; it comes last.
        frames: of the clip.
        content: ``"image"``, ``"images"``, one for each frame, or ``"video"``.
    """
    seen: list[dict[str, Any]] = [{"type": "video" if content == "video" else "image"}]
    if content == "images":
        seen *= frames
    return [
        {"role": "system", "content": VISION_SYSTEM if frames == 1 else CLIP_SYSTEM},
        {"role": "user", "content": [*seen, {"type": "text", "text": task}]},
    ]


def about_frame(task: str) -> list[dict[str, Any]]:
    """Return the messages of a task about one frame."""
    return about_clip(task, 1, "image")
