"""In-place operators become functional ones."""
