"""Names in a Triton model repository, which the exporter writes and the search model reads."""

SENTENCE_MODEL = "granalign_sentence_encoder"
"""The model of the sentence encoder's graph; its version's folder is the exported folder."""

IMAGE_MODEL = "granalign_image_encoder"
"""The model of the image tower; its version's folder is the exported folder of both towers."""

TEXT_MODEL = "granalign_text_encoder"
"""The model of the text tower of the frame encoder."""

SEARCH_MODEL = "granalign_search"
"""The Python model that searches a library."""

VERSION = "1"
"""The one version of each model, and the name of its folder."""
