"""`python -m blackbox` is the command."""

from blackbox.cli import main

main(prog_name="blackbox")
