"""Functionalization: in-place operators become functional ones."""
