"""The search for a counterexample, and its explanation."""
