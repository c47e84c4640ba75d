"""Simulators: batched, seeded per episode, with exact resets."""
