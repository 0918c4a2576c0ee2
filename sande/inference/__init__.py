"""Generate and score with a language model."""
