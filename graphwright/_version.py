"""The version: read by the build as well, so it stands here alone."""

__version__ = "0.1.0"
