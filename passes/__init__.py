"""What may be done to a program: patterns, rewriting, the pass manager, one file per pass family."""
