"""How plugins are found and read without executing them; :mod:`kdbench.registry` puts the parts together."""
