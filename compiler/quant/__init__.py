"""Post-training quantization: calibration, ranges, corrections, the report."""
