"""Which predictions are committed: one module a family, all of which are imported when a decoder is loaded."""
