"""The suite is tested too: faults put in on purpose."""
