"""The text form of programs: printed deterministically, parsed back to an equal program."""
