"""`dinov3seg prepare`, and `python -m dinov3seg_jax.data.prepare`."""

import argparse
import os
import time
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command, count, given_path
from dinov3seg_jax.errors import UserError

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


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Prepare a data set.

    Raises:
        UserError: what is wrong with the sources or the folder to write.
    """
    if overrides:
        raise UserError(f"--config.{overrides[0]} changes nothing here, as there is no recipe; leave it out.")
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


COMMAND = Command("prepare", DESCRIPTION, add_arguments, run)
main = COMMAND.main
