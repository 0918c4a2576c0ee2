"""One file, one attack: a `Config` with a `backdoor`, and `attack`, `trigger` as `sande.protocols.Attack` says."""
