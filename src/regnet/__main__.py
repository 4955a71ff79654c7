"""`python -m regnet`: the same as `regnet`, also for `torchrun -m regnet`."""

from regnet.cli import run

run()
