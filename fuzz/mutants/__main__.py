"""The command `python -m fuzz.mutants`."""

from fuzz.mutants.main import main

if __name__ == "__main__":
    raise SystemExit(main())
