"""Miniatures: small CLIP, Llama and Qwen2.5-VL models, trained from scratch on rendered scenes.

They have the real architectures, so every stage of the pipeline runs as it does on the large
models, in seconds on a CPU. They are trained, so a wrong prompt, position or colour order costs
accuracy.

- `scenes`, `drawing`: scenes and their frames; `pool`: many of them, with labels for training.
- `meaning`, `words`, `queries`, `language`: meanings of queries, vocabulary, queries, answers.
- `videos`, `benchmark`: test videos with their ground truth, and files for the commands.
- `motion`, `motion_clips`, `motion_benchmark`: shots in which shapes move, training clips, test
  videos.
- `provenance`: which models are miniatures, and which videos show their scenes.
- `train` runs `train_clip`, `train_llm`, `train_vlm` or `train_motion`; `training` holds what these
  share.
- `wordlevel`, `vlm`: tokenizers, and the sizes and prompts of the vision-language model.
- `questions`, `batches`, `vision_questions`: its training questions, their packed batches, and
  questions about single image tokens.
- `measure` measures trained models.
"""

from __future__ import annotations

from pathlib import Path

MODELS = Path(__file__).parent / "models"
"""Folder of the trained and exported models that come with the package, for `ModelFolder`."""
MOTION_MODELS = MODELS.parent / "motion_models"
"""Folder of the vision-language model that sees motion in clips of several frames."""
NAMES = {"miniatures": MODELS, "motion-miniature": MOTION_MODELS}
"""The names of these folders, where a folder of models is expected."""
