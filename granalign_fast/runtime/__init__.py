"""Run models on a device: ONNX Runtime sessions, CUDA graphs, TensorRT engines, device arrays."""
