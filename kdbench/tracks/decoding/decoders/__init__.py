"""Ways to write with a target model that cost it fewer forwards than one for each token, or keep to a format."""
