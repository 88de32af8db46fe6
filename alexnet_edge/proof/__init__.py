"""Proof that an artifact gives the checkpoint's answers."""
