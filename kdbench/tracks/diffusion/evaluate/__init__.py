"""Measures of samples: pure functions, and the networks that some of them need."""
