"""Write a checkpoint as TorchScript, `torch.export`, ONNX or a TensorRT engine, and prove each file before it is kept."""
