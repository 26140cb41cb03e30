"""Writers of ONNX graphs, node by node, and the quantisation of their weights."""
