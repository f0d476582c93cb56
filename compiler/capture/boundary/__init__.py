"""Real runs of a model, which show what its graph would miss."""
