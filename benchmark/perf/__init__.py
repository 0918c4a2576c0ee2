"""Benchmarks of speed. Each compares two ways to do the same work, checks that they agree, and prints one line."""
