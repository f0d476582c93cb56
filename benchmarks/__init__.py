"""Measurements, side by side with the peers, and the models that they, the demo and the tests run."""
