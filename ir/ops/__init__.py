"""What is known of operators: the table, the dialects beside ATen, type inference."""
