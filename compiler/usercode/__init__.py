"""The user's code and modules: places, copies, state."""
