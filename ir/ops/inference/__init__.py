"""Fast type inference: one module per family of operators; `ir.ops.table` gives each operator its rule."""
