"""Rows of a grid's results: schema, files, and their aggregation over seeds."""
