"""Lowering of FX graphs, without running them."""
