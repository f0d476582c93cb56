"""Bounds for numbers that are changed on purpose: how far, and in which results of a program."""
