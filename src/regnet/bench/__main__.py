"""`python -m regnet.bench`: the same as `regnet bench`."""

import sys

from regnet.cli.main import main

sys.argv[1:1] = ["bench"]
main()
