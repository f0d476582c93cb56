"""Structural conversions."""
