"""The package has tests of its own, which need it to be installed; test_installed.py runs them."""

collect_ignore = ["kdbench-matching"]
