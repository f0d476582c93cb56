"""ONNX files of programs: what they hold, what they are called, how they are written."""
