"""Run the command line: `python -m regnet` and `torchrun -m regnet` do the same as `regnet`."""

from regnet.cli import run

run()
