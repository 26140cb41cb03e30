"""ONNX graphs out, written node by node."""
