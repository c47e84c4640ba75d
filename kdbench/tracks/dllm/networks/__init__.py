"""Networks that predict masked tokens."""
