"""Fast type inference: one module per family of operators; `ir.optable` gives each operator its rule."""
