"""Patterns, and what rewrites a program by them."""
