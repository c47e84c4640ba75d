"""Networks of the students."""
