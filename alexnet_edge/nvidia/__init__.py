"""NVIDIA's libraries: the CUDA runtime, TensorRT, TensorRT-RTX."""
