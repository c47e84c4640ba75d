"""Networks of the track beside causal language models."""
