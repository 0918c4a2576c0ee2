"""Backdoors in generative language models and their removal: the methods. Knows nothing of Ray."""

__version__ = "0.1.0"
