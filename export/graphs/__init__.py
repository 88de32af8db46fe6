"""The graphs that runtimes read: ONNX, OpenVINO IR, TorchScript and torch.export."""
