"""Emitted modules as code: a package of Python that can be read and imported."""
