"""Train, export, prove and measure AlexNet for edge devices.

Importing this package needs only the base dependencies; torch, onnx, onnxruntime and TensorRT are imported where they
are used, and a missing one is a `MissingComponentError` with the command that installs it.
"""

__version__ = "0.1.0"
