"""How equality is judged."""
