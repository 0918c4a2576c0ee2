"""One file, one detector: a `Config` and `scan`, as `sande.protocols.Detector` says."""
