"""TensorRT and TensorRT-RTX engines: options, builders, and what the finished engine says of itself."""
