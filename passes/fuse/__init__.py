"""Operator fusions."""
