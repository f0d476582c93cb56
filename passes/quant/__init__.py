"""Where a target has integers: tables, placing of quantizers, sharing of their parameters."""
