"""``python -m mbsim``: the command line."""

from mbsim.cli import main

main()
