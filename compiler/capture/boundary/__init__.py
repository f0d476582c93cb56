"""What a module is beside its graph, as real runs show it."""
