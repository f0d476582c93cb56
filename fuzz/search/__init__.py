"""The search for a counterexample, and what is said of one."""
