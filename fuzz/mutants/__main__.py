"""The command `python -m fuzz.mutants`."""

from fuzz.mutants.suite import main

if __name__ == "__main__":
    raise SystemExit(main())
