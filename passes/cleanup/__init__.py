"""Dead code and common subexpressions."""
