"""Operators: the table, the dialects beside ATen, type inference."""
