"""Grid files: from YAML to checked cells and their keys."""
