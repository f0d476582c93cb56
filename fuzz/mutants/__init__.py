"""Mutation tests of the suite."""
