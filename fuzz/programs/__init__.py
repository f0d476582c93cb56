"""Whole programs: drawn, run, observed, held to oracles, made smaller."""
