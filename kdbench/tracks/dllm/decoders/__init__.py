"""Ways to write with a mask predictor: what methods return."""
