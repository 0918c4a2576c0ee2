"""Artifacts by key, in a folder or a bucket, with leases that keep two runs from computing the same."""
