"""The command line. A module for each group of commands; `main` puts them together.

Every start of the program imports all of them, so a command imports what it works with when it is called: `--help` and
`list` load neither Ray nor torch, nor the libraries of tables and figures.
"""
