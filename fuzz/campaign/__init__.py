"""Many searches over many targets."""
