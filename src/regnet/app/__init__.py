"""The explorer: design a RegNet, classify a photo and open reports in a browser.

It needs gradio (`pip install 'regnet[app]'`), and `regnet app` starts it. This package builds on
`selection`, and only the command line imports it.
"""

import atexit
import os
import socket
from contextlib import closing
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from regnet.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from gradio import Blocks

HOST: Final = "127.0.0.1"
PORT: Final = 7860
UPLOAD_MB: Final = 32


@cache
def temporary_folder() -> Path:
    """Return the folder for uploads and downloads.

    Only this user can read it, and it is removed when the process ends.
    """
    folder = TemporaryDirectory(prefix="regnet-explorer-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def launch(*, port: int = PORT, upload_mb: int = UPLOAD_MB, open_browser: bool = False) -> "Blocks":
    """Start a server for the explorer, which only this machine can reach, and return.

    Args:
        port: port of 127.0.0.1 to listen on.
        upload_mb: size of the largest file that can be uploaded, in megabytes.
        open_browser: open the page in a browser.

    Returns:
        gradio's page, with `local_url`, `block_thread()` and `close()`.

    Raises:
        MissingExtraError: gradio or matplotlib is not installed.
        ConfigError: the port cannot be used, or a number is out of range.
    """
    if not 1 <= port <= 65535 or upload_mb < 1:
        raise ConfigError(
            f"port must be 1 to 65535 and upload_mb at least 1; got {port} and {upload_mb}"
        )
    with closing(socket.socket()) as free:
        try:
            if os.name == "posix":  # as the server does it; Windows would allow a taken port
                free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((HOST, port))
        except OSError as error:
            reason = error.strerror or str(error)
            raise ConfigError(
                f"port {port} cannot be used ({reason.lower()}); choose another"
            ) from error
    # gradio reads both variables when it is imported. Uploads are in the temporary folder, so that
    # they are removed with it.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(temporary_folder() / "uploads")
    try:
        import gradio  # noqa: F401 - imported to check that it is installed
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f"the explorer needs {error.name}, which is not installed; pip install 'regnet[app]'"
        ) from error
    from starlette.middleware import Middleware

    from regnet.app.guard import Guard
    from regnet.app.page import CSS, THEME, build

    page = build()
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            inbrowser=open_browser,
            prevent_thread_lock=True,
            max_file_size=f"{upload_mb}mb",
            ssr_mode=False,
            quiet=True,
            footer_links=[],
            app_kwargs={"middleware": [Middleware(Guard, port=port)]},
            theme=THEME,
            css=CSS,
        )
    except OSError as error:
        raise ConfigError(f"port {port} cannot be used ({error}); choose another") from error
    return page
