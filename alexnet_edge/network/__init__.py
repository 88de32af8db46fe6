"""The network: its layer table, its PyTorch model, its checkpoint, its quantised weights."""
