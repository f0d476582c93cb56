"""What can be computed before a program runs: constants, weights, batch norms."""
