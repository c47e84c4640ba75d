"""Networks of the track: how they are built, loaded and trained before the tasks begin, and their tokenizers."""
