"""Networks that distilled data are trained on, committees and experts."""
