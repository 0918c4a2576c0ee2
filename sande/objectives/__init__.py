"""Objectives: what an attack wants of answers to triggered prompts, and how that is measured. One file each."""
