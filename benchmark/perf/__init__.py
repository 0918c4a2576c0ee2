"""Benchmarks of speed: each compares two ways to do the same work, checks that they agree, and prints one line."""
