"""What all commands' parsers share: one style of help, and the kinds of values that users type."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pydantic

from dinov3seg_jax.config_files import split_overrides
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded

SMALLEST_MEMORY = 10**6  # bytes; less is an amount whose unit was forgotten


class _Parser(argparse.ArgumentParser):
    """Help that keeps its lines, and errors in the style of all others: the usage, and one line."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(2, f"error: {message}\n")


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser whose help begins with what the command does."""
    return _Parser(prog=prog, description=f"{description[:1].upper()}{description[1:]}.")


@dataclass(frozen=True)
class Command:
    """One command: what it does in a line, its options, and what runs when they are parsed."""

    word: str
    description: str  # without a full stop
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, list[str]], int]  # (options, overrides of the config) -> exit status

    def main(self, arguments: Sequence[str] | None = None, prog: str = "") -> int:
        """Parse a command line and run the command.

        Args:
            arguments: of the command line; those of this process if None.
            prog: what the command is called; default `dinov3seg WORD`.

        Returns:
            The exit status.

        Raises:
            UserError: what was asked for cannot be done.
        """
        parser = make_parser(prog or f"dinov3seg {self.word}", self.description)
        self.add_arguments(parser)
        overrides, rest = split_overrides(sys.argv[1:] if arguments is None else arguments)
        return self.run(parser.parse_args(rest), overrides)


def add_folder_argument(group: argparse._ArgumentGroup, more: str = "", **options: Any) -> None:
    """The option that names a model's folder; `more` goes on with its help, and `options` are argparse's."""
    words = "a run, converted weights, or the name of a fetched model"
    flags = ("--checkpoint", "--weights", "--model")
    group.add_argument(*flags, type=given_path, metavar="FOLDER", help=f"{words}{more}", **options)


def add_step_argument(group: argparse._ArgumentGroup) -> None:
    """The option that names a step of a run."""
    group.add_argument(
        "--step",
        default="newest",
        metavar="STEP",
        help="of a run: newest, best (by what was scored while it trained), or a number; default: %(default)s",
    )


def given_path(text: str) -> Path:
    """A path on a command line."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty; name a file or a folder")  # `Path` takes it for "."
    return expanded(text)


def amount_of_memory(text: str, or_else: str = "") -> int:
    """Bytes of an amount as in "4GB".

    Args:
        text: as typed.
        or_else: what else may be typed, for the message.

    Raises:
        UserError: it is none, or too small to be meant.
    """
    try:
        size = int(pydantic.TypeAdapter(pydantic.ByteSize).validate_python(text))
    except (pydantic.ValidationError, OverflowError):
        size = 0
    if size <= 0:
        raise UserError(f"--memory is '{text}', which is no amount of memory; write it as in 4GB or 512MB{or_else}")
    if size < SMALLEST_MEMORY:
        raise UserError(f"--memory is '{text}', which is {size:,} bytes, less than 1 MB; write the unit, as in 4GB")
    return size


def count(text: str) -> int:
    """A number of things on a command line."""
    try:
        number = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number") from error
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number
