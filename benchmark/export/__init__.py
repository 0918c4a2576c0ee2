"""Export a model of the store, with its card."""
