"""Repair one model of a user."""
