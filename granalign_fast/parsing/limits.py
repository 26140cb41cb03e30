"""The limits of what is read, each with its reason: a small file must not take all memory or hours.

They are part of the configuration. This module imports nothing, so that every reader can use them.
"""

from __future__ import annotations

MOST_PIXELS = 1 << 27
"""Pixels of a video's frame: 16,384 x 8,192, a whole sphere in 16K. Its picture takes 400 MB."""
MOST_STREAMS = 256
"""Streams of a video file. A disc or a broadcast has some dozens; FFmpeg sets up a parser and a
decoder for each."""
MOST_CLIPS = 500_000
"""Clips of a video: 11 days of 2 s. A file of 100 KB can announce a year of still pictures."""
LEAST_CLIP_SECONDS, MOST_CLIP_SECONDS = 0.01, 3600.0
"""Seconds of a clip: two frames of a camera for slow motion, and an hour. Arrays are as long as the
quotient of two lengths."""
FRAMES_PER_CLIP = (1, 2, 4, 6)
"""The numbers of frames that a clip can have: one, or pairs, which video models take together."""
MOST_WINDOWS = 1_000
"""Windows of a query, annotated or predicted. QVHighlights scores ten; all queries' windows lie in
one array, so one long list would lengthen all."""
MOST_GIB = 1 << 20
"""GiB that a user can allow for a cache or a file: a larger number is a typing error."""
MOST_NAME = 4_096
"""Characters of a video's id, of a name or of a fingerprint: the longest path of a file."""
MOST_CHARACTERS = 4_000
"""Characters of a query or a rewrite: some 1,000 tokens, twice what any sentence encoder reads."""
MOST_TEXTS = 64
"""Rewrites of a query at one granularity, and its entities or actions; the method has three."""

MOST_JSON_BYTES = 1 << 27
"""Bytes of a JSON file, 128 MiB: the largest tokenizers have 35 MB."""
MOST_DOCUMENT_BYTES = 1 << 30
"""Bytes of a file of annotations or captions that is read at once, 1 GiB: published ones have
below 100 MB."""
MOST_GRAPH_BYTES = 1 << 31
"""Bytes of an ONNX file without its external data, 2 GiB: the most that its format allows."""
MOST_ENGINE_BYTES = 1 << 37
"""Bytes of a TensorRT engine, 128 GiB: the memory of the largest GPUs."""
MOST_INDEX_BYTES = 1 << 32
"""Bytes of a file of an index, 4 GiB: half a million clips with two embeddings of 1,024 numbers."""

SPARE_BYTES = 150_000_000
"""Bytes of memory that the content of a file of any size may take; see `memory_for`."""
GROWTH = 9
"""Bytes of memory that each byte of a file may take besides; see `memory_for`. Lists of numbers in
JSON take up to seven, and published files of captions that are compressed six."""
MOST_LINE = 1 << 26
"""Bytes of a line of JSON Lines: the captions of `MOST_CLIPS` clips. The usual line has some KB."""
MOST_DEPTH = 64
"""Lists and objects inside each other in JSON. Published files have six, and tokenizers ten."""
MOST_DIGITS = 40
"""Digits in a row in JSON. An integer of 64 bits has 19; transformers writes 1e30 for no limit."""
MOST_COLUMNS = 64
"""Columns of a Parquet file that are looked at at all; ours have at most four."""
MOST_TENSOR_HEADER = 1 << 20
"""Bytes of the header of an index's safetensors, which has three tensors at most."""
MOST_MODEL_HEADER = 100_000_000
"""Bytes of the header of a model's safetensors; the format's own library has this limit too."""

MOST_TOKEN_CHARACTERS = 1 << 12
"""Characters of a special token; published ones have some dozens. The time to add a token grows
with the square of its length."""
MOST_SETTING = 1 << 24
"""The greatest integer in a source model's settings that a size depends on; vocabularies have up to
300,000 tokens."""
MOST_TOKENIZER = 1 << 26
"""Bytes of a ``tokenizer.json``. The largest published ones have 33 MB."""
MOST_TOKENS = 1 << 22
"""Numbers of tokens; the largest published vocabularies have 262,144."""
MOST_PADDED_TOKENS = 1 << 12
"""Tokens to which every text is padded. SigLIP pads to 64."""
MOST_CAPTION = 20_000
"""Characters of a caption: a page. A vision-language model writes some 200, and those of published
files have at most some thousand."""
MOST_TEMPLATE = 1 << 17
"""Characters of a chat template. Published ones have up to 20,000."""
MOST_PROMPT = 1 << 20
"""Characters of a rendered prompt: some 250,000 tokens, more than the models have context for."""
MOST_RENDER_STEPS = 1 << 24
"""Steps of rendering a prompt: each pass of a loop and each character that an expression makes
counts. A conversation of a query takes some ten thousand, and all of these take seconds."""
MOST_RENDER_SECONDS = 5.0
"""Seconds of rendering a prompt, for a step that is slower than others. Usual ones take 1 ms."""

MOST_MESSAGE = 2_000
"""Characters of an error message: two paths of the greatest usual length and their reasons."""


def memory_for(file_bytes: int) -> int:
    """Return how many bytes of memory the content of a file may take.

    A file that was compressed is judged by its size on disk, so a small one cannot expand to more
    than the machine has.
    """
    return SPARE_BYTES + GROWTH * file_bytes
