"""What methods of the track are made of, beyond what all tracks share."""
