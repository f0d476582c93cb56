"""What is observed of values, and which grid fits it."""
