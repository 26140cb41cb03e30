"""Models for Triton's Python back end: the search of a library, and encoders by ONNX Runtime.

`granalign export triton` writes a repository whose `model.py` files import these. They run in the
server's Python, which needs granalign-fast with the extra [serve].
"""
