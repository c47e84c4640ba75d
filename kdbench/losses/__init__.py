"""Losses of distillation as pure functions; shapes and sources in each docstring."""
