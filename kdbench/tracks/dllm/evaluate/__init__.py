"""Measures of decoders."""
