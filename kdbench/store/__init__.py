"""Where outcomes go: the spool, which is the truth, and the DuckDB and MLflow stores that are filled from it."""
