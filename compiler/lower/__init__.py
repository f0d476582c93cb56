"""From PyTorch's graph to a program."""
