"""Scan models for backdoors, and measure how well detectors do."""
