"""What one runtime wants, as data."""
