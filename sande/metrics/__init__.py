"""Metrics, one in each file; `sande.protocols.Metric` defines what a file must hold."""
