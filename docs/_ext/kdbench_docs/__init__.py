"""Reference pages that are generated from the code, as Markdown; :mod:`kdbench_docs.extension` gives them to Sphinx."""
