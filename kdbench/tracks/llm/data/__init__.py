"""Data of the track ``llm``: corpora, procedural generators, and their encoding into tensors."""
