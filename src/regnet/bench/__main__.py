"""`python -m regnet.bench`: the same as `regnet bench`."""

import sys

from regnet.cli import run

sys.argv[1:1] = ["bench"]
run()
