"""The training loop, and the parts that many methods share."""
