"""What problems of the track are made of."""
