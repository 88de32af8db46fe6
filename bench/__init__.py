"""Prove that an artifact gives the checkpoint's answers, and measure how fast it gives them."""
