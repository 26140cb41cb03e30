"""Miniatures: small CLIP, Llama and Qwen2.5-VL models, trained from scratch on rendered scenes.

Their architectures are the real ones, so every stage of the pipeline runs as it does on the large
models, in seconds on a CPU; and they understand what they see, so that a broken prompt, position or
colour order costs accuracy. `scenes` and `drawing` make the pictures; `meaning`, `queries` and
`language` all that is said of them; `videos` the test videos with their ground truth;
`python -m granalign_fast.miniatures.train` trains the models, `.measure` measures them.
"""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""The trained and exported models that come with the package, for `ModelFolder`."""
