"""FX graphs, lowered without being run."""
