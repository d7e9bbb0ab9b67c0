"""The command line of `dinov3seg_jax.data.prepare`."""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax.data.prepare.recipes import RECIPES
from dinov3seg_jax.data.prepare.run import prepare
from dinov3seg_jax.errors import run_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare a data set.

    Args:
        arguments: of the command line; those of this process if None.

    Raises:
        UserError: what is wrong with the sources or the folder to write.
    """
    parser = argparse.ArgumentParser(
        prog="python -m dinov3seg_jax.data.prepare", description="Turn a benchmark's archives into class indices."
    )
    parser.add_argument("name", metavar="NAME", choices=RECIPES, help=", ".join(RECIPES))
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        metavar="ARCHIVE_OR_FOLDER",
        help="the official .zip, .tar and .tar.gz files, or folders into which they were unpacked",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="to write")
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="train, eval or both; all that there are if left out"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes; as many as cores")
    parser.add_argument(
        "--allow_partial", action="store_true", help="accept missing files; the manifest then says what is missing"
    )
    options = parser.parse_args(sys.argv[1:] if arguments is None else arguments)
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


if __name__ == "__main__":
    run_command(main)
