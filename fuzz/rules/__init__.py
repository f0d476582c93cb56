"""Programs for one rule: drawn from its pattern, by its inverse, around its conditions."""
