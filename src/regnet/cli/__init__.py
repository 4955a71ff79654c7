"""The `regnet` command line: one file per command, each a thin shell over a public function.

This package may import every other one. Only `regnet.__main__` and `regnet.bench.__main__` import
it.
"""

import sys

from regnet.cli.interrupt import end_in_order, interrupted, remember_interrupts


def run() -> None:
    """Run the command line. Ctrl-C ends it with one line, even while modules are being imported."""
    try:
        remember_interrupts()
        end_in_order()
        from regnet.cli.main import main

        main()
    except (KeyboardInterrupt, Exception) as error:
        # A library that Ctrl-C interrupts may raise an error of its own instead.
        if not (interrupted() or isinstance(error, KeyboardInterrupt)):
            raise
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
