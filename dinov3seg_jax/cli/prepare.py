"""`dinov3seg prepare`, and `python -m dinov3seg_jax.data.prepare`."""

import argparse
import os
import time
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import count, given_path, make_parser

DESCRIPTION = "turn a benchmark's archives into images and class indices"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    from dinov3seg_jax.data.prepare.recipes import RECIPES

    parser.add_argument("name", metavar="NAME", choices=tuple(RECIPES), help=", ".join(RECIPES))
    given = parser.add_argument_group("files")
    given.add_argument(
        "--source",
        type=given_path,
        nargs="+",
        required=True,
        metavar="ARCHIVE_OR_FOLDER",
        help="the official .zip, .tar and .tar.gz files, or folders into which they were unpacked",
    )
    given.add_argument("--out", type=given_path, required=True, metavar="FOLDER", help="to write")
    options = parser.add_argument_group("options")
    options.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="train, eval or both; default: all that there are"
    )
    options.add_argument(
        "--workers", type=count, default=os.cpu_count() or 1, metavar="N", help="processes; default: one for each core"
    )
    options.add_argument(
        "--allow_partial", action="store_true", help="accept missing files; the manifest then says what is missing"
    )


def main(arguments: Sequence[str] | None = None, prog: str = "dinov3seg prepare") -> int:
    """Prepare a data set.

    Args:
        arguments: of the command line; those of this process if None.
        prog: what the command is called.

    Returns:
        The exit status, 0.

    Raises:
        UserError: what is wrong with the sources or the folder to write.
    """
    parser = make_parser(prog, DESCRIPTION)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    from dinov3seg_jax.data.prepare.run import prepare

    started = time.perf_counter()
    manifest = prepare(
        options.name,
        options.source,
        options.out,
        splits=options.splits,
        workers=options.workers,
        allow_partial=options.allow_partial,
        progress=True,
    )
    counts = ", ".join(f"{split['files']:,} of {name}" for name, split in manifest["splits"].items())
    print(f"{options.name}: {counts}, in {time.perf_counter() - started:.0f} s -> {options.out}")
    return 0
