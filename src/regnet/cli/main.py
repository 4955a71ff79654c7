"""Entry point: register the commands, and end with one line and an exit code if one fails."""

import logging
import os
import sys
import warnings
from io import TextIOWrapper
from itertools import pairwise
from typing import Annotated, Any, Final, NoReturn

import typer
import typer.core

from regnet.cli import (
    bench,
    choose,
    evaluate,
    explorer,
    export,
    info,
    list_models,
    predict,
    search,
    study,
    train,
    weights,
)
from regnet.cli.interrupt import interrupted
from regnet.cli.output import print_error
from regnet.errors import ConfigError, RegNetError, out_of_memory

WRONG_INPUT: Final = (ConfigError, FileNotFoundError, NotADirectoryError)
"""Errors that end with exit code 2, like wrong usage."""

_SHORT_OF_MEMORY: Final = (
    "not enough memory; use a smaller batch, smaller images or a smaller model"
)

ORDER: Final = (
    "choose", "list", "info", "weights", "predict", "train", "evaluate", "export", "bench",
    "search", "study", "app",
)  # fmt: skip
"""Order of the commands in the help: the order in which a user needs them."""


class _Commands(typer.core.TyperGroup):
    """The commands in their order; an empty argument is refused for all of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, argument in pairwise((self.name or "", *args)):
            name, equals, value = argument.partition("=")
            if not argument or (name.startswith("--") and equals and not value):
                raise ConfigError(f"there is an empty value after {name or before}; give one")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    name="regnet",
    cls=_Commands,
    help="RegNets: choose, train, export and benchmark them, and study their design spaces.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("predict")(predict.command)
app.command("choose")(choose.command)
app.command("list")(list_models.command)
app.command("info")(info.command)
app.command("export")(export.command)
app.command("evaluate")(evaluate.command)
app.command("train")(train.command)
app.command("search")(search.command)
app.command("app")(explorer.command)
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")
app.add_typer(weights.app, name="weights")


def _version(asked: bool) -> None:  # noqa: FBT001 - typer calls it by position
    if asked:
        from regnet import __version__

        print(f"regnet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    *,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """RegNets: choose, train, export and benchmark them, and study their design spaces."""
    # `main` handles the errors, and looks for --debug in `sys.argv` itself.


def main() -> None:
    """Run a command; exit with 0 (done), 1 (failed, with one line on stderr) or 2 (wrong usage)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # The encoding of the terminal may lack characters of a file name.
            stream.reconfigure(errors="backslashreplace")
    # Hide what Pillow prints about damaged images: our errors say what is wrong with an image.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # inside the outer try, which handles a closed pipe
    except (RegNetError, OSError, MemoryError, RuntimeError) as error:
        memory = out_of_memory(error)
        expected = memory or isinstance(error, (RegNetError, OSError))
        if not expected or "--debug" in sys.argv[1:] or interrupted():
            raise
        if isinstance(error, BrokenPipeError):
            _end_unread()
        print_error(_SHORT_OF_MEMORY if memory else _message(error))
        sys.exit(2 if isinstance(error, WRONG_INPUT) else 1)
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):  # click turns it into exit code 1
            _end_unread()
        raise


def _end_unread() -> NoReturn:
    """Exit with code 0 if the reader of our output is gone, as in `regnet list | head -1`."""
    # Output that is still buffered would raise the error again at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and not isinstance(error, RegNetError):
        return f"{error.filename or 'output'}: {error.strerror or error}"
    return str(error) or type(error).__name__


if __name__ == "__main__":
    main()
