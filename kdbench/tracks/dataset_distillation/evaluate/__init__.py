"""Scores of distilled data sets."""
