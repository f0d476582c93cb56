"""Modules as users write them: drawn as source text, and held to what `transform` makes of them."""
