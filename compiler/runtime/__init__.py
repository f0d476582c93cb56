"""Engines that run ONNX files, as modules."""
