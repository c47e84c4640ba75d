"""Data of the track: procedural problems with one right answer, formats, scenes."""
