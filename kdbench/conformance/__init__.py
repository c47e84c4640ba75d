"""The conformance kit: what every method must keep to, checked by running it.

``kdbench test-method`` and ``pytest --kdbench-method`` print what :func:`kdbench.conformance.checks.examine` finds.
"""
