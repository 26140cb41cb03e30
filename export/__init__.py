"""Models to ONNX: facts as data, graphs, and the check of every export against its source."""
