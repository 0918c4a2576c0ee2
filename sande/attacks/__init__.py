"""Attacks, one in each file; `sande.protocols.Attack` defines what a file must hold."""
