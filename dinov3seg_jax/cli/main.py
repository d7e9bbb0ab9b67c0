"""The command `dinov3seg`: `dinov3seg predict ...`, `dinov3seg warmup ...`, `dinov3seg export ...`."""

import importlib
import sys
from collections.abc import Sequence

from dinov3seg_jax.errors import UserError, run_command

COMMANDS = {
    "predict": ("dinov3seg_jax.cli.predict", "segment pictures into classes you name"),
    "warmup": ("dinov3seg_jax.cli.warmup", "compile and embed ahead of time"),
    "export": ("dinov3seg_jax.export.writer", "write a run's model for JAX alone"),
}


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
    if word not in COMMANDS:
        print(_usage(), file=sys.stderr)
        raise UserError(f"there is no command '{word}'; name one of these." if word else "no command is named.")
    return importlib.import_module(COMMANDS[word][0]).main(rest, prog=f"dinov3seg {word}")


def run() -> None:
    """The console script."""
    run_command(main)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    listed = (f"  {word:{width}}  {what}" for word, (_, what) in COMMANDS.items())
    return "\n".join(("usage: dinov3seg COMMAND ...; dinov3seg COMMAND --help says more", *listed))
