"""Models on a device: sessions of ONNX Runtime, CUDA graphs, TensorRT engines, and arrays."""
