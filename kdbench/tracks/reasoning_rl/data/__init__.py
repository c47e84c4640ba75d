"""Problems with a verifier: how they are made, what a right answer is, and the prompts that they are put in."""
