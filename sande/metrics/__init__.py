"""One file, one metric: a `Config` and `measure`, as `sande.protocols.Metric` says."""
