"""The capture of a model as a graph of PyTorch."""
