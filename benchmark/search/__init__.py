"""Search the settings of a defense with Ray Tune."""
