"""From a model to a graph of PyTorch."""
