"""The `regnet` command: one file per subcommand, each a thin shell over a public function.

It may import every room; only `regnet.__main__` and `regnet.bench.__main__` import it.
"""

import sys

from regnet.cli.interrupt import interrupted, remember_interrupts


def run() -> None:
    """Run the command. Ctrl-C ends it with one line, also while its modules are imported."""
    try:
        remember_interrupts()
        from regnet.cli.main import main

        main()
    except (KeyboardInterrupt, Exception) as error:
        if not (interrupted() or isinstance(error, KeyboardInterrupt)):
            raise
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)
