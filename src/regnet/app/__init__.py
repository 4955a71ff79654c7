"""The explorer: design a RegNet, classify a photo, read reports, in a browser.

Needs gradio (`pip install 'regnet[app]'`); `regnet app` starts it. It stands on `selection`, and
only the command line imports it.
"""

import atexit
import os
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
    """The folder for uploads and downloads, which only this user can read; removed at the end."""
    folder = TemporaryDirectory(prefix="regnet-explorer-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def launch(*, port: int = PORT, upload_mb: int = UPLOAD_MB, open_browser: bool = False) -> "Blocks":
    """Begin to serve the explorer, on this machine alone.

    Args:
        port: of 127.0.0.1.
        upload_mb: largest file that it takes, in megabytes.
        open_browser: show it at once.

    Returns:
        gradio's page: `local_url`, `block_thread()`, `close()`.

    Raises:
        MissingExtraError: gradio or matplotlib is not installed.
        ConfigError: the port is taken, or a number is out of range.
    """
    if not 1 <= port <= 65535 or upload_mb < 1:
        raise ConfigError(
            f"port must be 1 to 65535 and upload_mb at least 1; got {port} and {upload_mb}"
        )
    # gradio reads both when it is imported. The folder is removed at the end, with all uploads.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(temporary_folder() / "uploads")
    try:
        import gradio  # noqa: F401 - whether they are there
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
