"""`python -m benchmark` is `sande-bench`."""

from benchmark.cli import main

main()
