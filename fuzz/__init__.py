"""Looking for trouble: strategies, oracles, campaigns and the corpus of what was found."""
