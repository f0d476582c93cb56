"""Benchmarks, beside those of peers, and the models of benchmarks, demo and tests."""
