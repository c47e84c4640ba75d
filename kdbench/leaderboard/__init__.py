"""What is read from the outcomes: statistics, boards, data frames."""
