"""What was done and what was found, as values; then how it looks."""
