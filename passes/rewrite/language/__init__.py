"""The language of patterns: its nodes, the builder that makes them, and what several roots have in common."""
