"""The command `dinov3seg`: the first word says which of `COMMANDS` runs."""

import importlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinov3seg_jax.errors import UserError, did_you_mean, run_command

if TYPE_CHECKING:
    from dinov3seg_jax.cli.parsing import Command

# Each is a module in this folder, with a COMMAND.
COMMANDS = (
    "models",
    "fetch",
    "predict",
    "app",
    "compare",
    "train",
    "eval",
    "calibrate",
    "plan",
    "convert",
    "verify",
    "prepare",
    "export",
    "warmup",
)
SHELLS = ("bash", "zsh", "tcsh")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names.

    Args:
        arguments: of the command line; those of this process if None.

    Returns:
        The exit status.

    Raises:
        UserError: as the command says, or there is no such command.
    """
    word, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or [""]
    if word in ("-h", "--help"):
        print(_usage())
        return 0
    if word == "--version":
        import dinov3seg_jax

        print(f"dinov3seg_jax {dinov3seg_jax.__version__}")
        return 0
    if word == "--completion":
        print(_completion(*rest[:1]))
        return 0
    if word not in COMMANDS:
        print(_usage(), file=sys.stderr)
        raise UserError(
            f"there is no command '{word}'{did_you_mean(word, COMMANDS)}; name one of these."
            if word
            else "no command is named."
        )
    return _command(word).main(rest)


def run() -> None:
    """The console script."""
    run_command(main)


def _command(word: str) -> "Command":
    return importlib.import_module(f"dinov3seg_jax.cli.{word}").COMMAND


def _usage() -> str:
    width = max(map(len, COMMANDS))
    listed = (f"  {word:{width}}  {_command(word).description}" for word in COMMANDS)
    return "\n".join(
        (
            "usage: dinov3seg COMMAND ...",
            "",
            *listed,
            "",
            "dinov3seg COMMAND --help says more. --version prints the version; --completion SHELL a script that lets",
            f'a shell ({", ".join(SHELLS)}) complete words, as in: eval "$(dinov3seg --completion bash)"',
        )
    )


def _completion(shell: str = "") -> str:
    if shell not in SHELLS:
        raise UserError(f"--completion takes the name of a shell, one of {', '.join(SHELLS)}.")
    try:
        import shtab
    except ImportError:
        raise UserError("completion needs shtab; install it with: pip install shtab") from None
    from dinov3seg_jax.cli.parsing import make_parser

    parser = make_parser("dinov3seg", "")
    commands = parser.add_subparsers()
    for word in COMMANDS:
        command = _command(word)
        command.add_arguments(commands.add_parser(word, help=command.description))
    return shtab.complete(parser, shell)
