"""Parts that several methods of the track share."""
