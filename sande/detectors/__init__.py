"""Detectors, one in each file; `sande.protocols.Detector` defines what a file must hold."""
