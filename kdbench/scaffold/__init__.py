"""``kdbench new``: methods and packages that run as they are written, from templates that tracks bring."""
