"""`regnet app`: open the explorer in the browser."""

from typing import Annotated

import typer

from regnet.app import PORT, UPLOAD_MB, launch
from regnet.cli.output import stderr, stdout


def command(
    *,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = PORT,
    upload_mb: Annotated[
        int, typer.Option(help="Largest file to accept, in megabytes.", min=1)
    ] = UPLOAD_MB,
    open_browser: Annotated[
        bool, typer.Option("--open/--no-open", help="Open the page in the browser.")
    ] = True,
) -> None:
    """Design RegNets, classify photos and read reports in the browser.

    Example: regnet app --port 7861
    """
    page = launch(port=port, upload_mb=upload_mb, open_browser=open_browser)
    stdout.print(page.local_url)
    stderr.print("press Ctrl-C to stop")
    page.block_thread()
