"""Why rules did not match: how far they got at a place, and in what the program differs from their patterns."""
