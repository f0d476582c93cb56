"""One call of one operator: its operands and attributes."""
