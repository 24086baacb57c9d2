"""The command line. Rooms are imported when a command needs them, so that help is instant.

options.py says what commands can be told, opening.py what is made of it, printing.py what they print; asking.py,
keeping.py and bench.py hold the commands.
"""

from __future__ import annotations

import io
import os
import sys

import click

from infinipot_llm import __version__
from infinipot_llm.cli.asking import ask, chat, info, read, trace
from infinipot_llm.cli.bench import bench
from infinipot_llm.cli.keeping import calibrate, models, store, verify
from infinipot_llm.errors import InfiniPotError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
NO_MEMORY = (
    "the memory of this machine or of its GPU is too small for this: give a smaller --budget, a smaller model, "
    "--dtype bfloat16 or float16, or --device cpu."
)


def main() -> None:
    """Run the command line; errors of the user are one sentence on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an answer may hold letters that a pipe's code page has not
            stream.reconfigure(errors="backslashreplace")
    try:
        cli.main(standalone_mode=False)
    except InfiniPotError as error:
        _fail(str(error))
    except click.ClickException as error:
        error.show()
        sys.exit(EXIT_BAD_INPUT)
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{f'{error.filename}: ' if error.filename else ''}{error.strerror or error}.")
    except (MemoryError, RuntimeError) as error:
        from infinipot_llm.models.device import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        _fail(NO_MEMORY)


def _fail(sentence: str) -> None:
    from infinipot_llm.documents.clean import one_line

    click.echo(f"infinipot: {one_line(sentence)}", err=True)
    sys.exit(EXIT_BAD_INPUT)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="infinipot")
def cli() -> None:
    """Ask questions of whole long documents with a local language model, through a KV cache that never grows."""


for command in (ask, chat, read, info, trace, verify, store, calibrate, models, bench):
    cli.add_command(command)
