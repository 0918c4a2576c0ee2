"""`python -m benchmark` is `sande-bench`."""

from benchmark.cli.entry import main

main()
