"""What ``train`` returns."""
