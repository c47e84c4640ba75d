"""The static site: ``kdbench report`` turns a results folder into pages that need no server and no network."""
