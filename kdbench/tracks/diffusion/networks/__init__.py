"""Denoisers of the track: exact, trained here, and pretrained ones."""
