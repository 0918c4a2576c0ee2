"""Language models: names, loading, saving, checks."""
