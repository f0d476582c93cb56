"""Where a module is more than its graph: what surrounds it, seen in real runs, and held to what is emitted."""
