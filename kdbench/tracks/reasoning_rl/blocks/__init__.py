"""What several methods of the track share: rollouts, scores under other contexts, handles of teachers, edits."""
