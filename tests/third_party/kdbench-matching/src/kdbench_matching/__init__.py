"""Two ways to match a teacher's logits, and digits with five labels per class, for kdbench."""
