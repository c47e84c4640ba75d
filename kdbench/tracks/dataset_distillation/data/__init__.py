"""Data of the track, made or read from packages when a task asks for them."""
