"""The held-out track: triggers, responses and seeds that a secret decides, and results without a trace of them."""
