"""What is the user's: places in the code, copies of modules, what modules hold."""
