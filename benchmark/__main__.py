"""`python -m benchmark` is `sande-bench`."""

from benchmark.cli.main import main

main()
