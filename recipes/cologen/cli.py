"""What the commands share at the terminal: arguments, errors, quiet loading."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffusers.utils.logging import disable_progress_bar as disable_diffusers_bars
from rich.console import Console
from transformers.utils.logging import disable_progress_bar as disable_transformers_bars

REFUSED = 1
"""Exit status of a command that could not do what it was asked for."""


def silence_loading_bars() -> None:
    """Switch off the bars that diffusers and transformers show while a base is loaded, a second or less."""
    disable_diffusers_bars()
    disable_transformers_bars()


def plain_console() -> Console:
    """A console on stderr that shows text as it is, without markup and without cutting lines."""
    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def refuse(problem: object) -> int:
    """Print an error; return the exit status."""
    plain_console().print(f"error: {problem}")
    return REFUSED


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a run's settings and stages: --config, --stage, --data, --set."""
    parser.add_argument(
        "--config", required=True, help="name of a config in recipes/cologen/configs, or a YAML file"
    )
    parser.add_argument("--stage", default="all", help="all, a stage, or a range FIRST..LAST (default: all)")
    parser.add_argument(
        "--data", help="read folder:PATH, pictures with a metadata.jsonl, in place of the config's data"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override settings by dotted name",
    )


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add the argument that names a run: --checkpoint."""
    parser.add_argument(
        "--checkpoint", type=Path, metavar="RUN", help="the folder that training wrote", required=True
    )


def positive(text: str) -> int:
    """Read a whole number from 1 up off the command line.

    Raises:
        ArgumentTypeError: Says what came.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 up, got {text!r}")
    return int(text)
