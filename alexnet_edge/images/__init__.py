"""From an image file, a folder or a camera to a float32 input; needs no torch."""
