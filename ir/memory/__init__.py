"""Aliasing, strides and layouts."""
