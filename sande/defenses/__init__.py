"""One file, one defense: a `Config` and `defend`, as `sande.protocols.Defense` says."""
