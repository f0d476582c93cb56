"""The dialect `quant`: from floating numbers to integers, and back."""
