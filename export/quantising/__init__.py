"""Ranges for INT8 and FP8: calibration, corrections, and a check of the calibration images."""
