"""Entry point of `python -m blackbox`, which runs the command."""

from blackbox.cli import main

main(prog_name="blackbox")
