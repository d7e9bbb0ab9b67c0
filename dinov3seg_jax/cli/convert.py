"""`dinov3seg convert`, and `python -m convert`."""

import argparse
import sys
import time
from collections.abc import Sequence

from dinov3seg_jax.cli import verify
from dinov3seg_jax.cli.parsing import Command, given_path

DESCRIPTION = "turn official weights into this project's, exactly"
EPILOG = """\
--config.text.heads=20 and the like set what the shapes do not say, for sizes that were never released."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options: a parser for each kind of source, and one for `verify`."""
    from dinov3seg_jax.convert.recognise import KINDS

    commands = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, row in KINDS.items():
        add_kind_arguments(commands.add_parser(kind, help=row.what, description=row.what, epilog=EPILOG))
    verify.add_arguments(commands.add_parser("verify", help=verify.DESCRIPTION, description=verify.DESCRIPTION))


def add_kind_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of every kind of source."""
    files = parser.add_argument_group("files")
    files.add_argument(
        "--source",
        type=given_path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".safetensors, an index of shards or the folder that holds it, .pth or .npz; several files of one model; "
        "TIPSv2's tokenizer.model too",
    )
    files.add_argument("--out", type=given_path, required=True, metavar="FOLDER", help="to write")
    options = parser.add_argument_group("options")
    options.add_argument(
        "--rounded_periods",
        action="store_true",
        help="Hugging Face's and timm's files: use rotary periods rounded to bfloat16, as in the official files",
    )
    options.add_argument(
        "--take",
        default="",
        metavar="NAME",
        help="of a file with several sets of weights, such as model and ema: those under this name",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Convert, or verify.

    Raises:
        UserError: what was asked for cannot be done; nothing is written then.
    """
    if options.kind == "verify":
        return verify.run(options, overrides)
    from dinov3seg_jax.convert.run import convert
    from dinov3seg_jax.store.converted import WEIGHTS_FILE, parts

    started = time.perf_counter()
    manifest = convert(
        options.kind,
        options.source,
        options.out,
        overrides,
        rounded_periods=options.rounded_periods,
        take=options.take,
    )
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    size = (options.out / WEIGHTS_FILE).stat().st_size
    print(
        f"{manifest.name}: {len(manifest.arrays)} arrays of {', '.join(parts(manifest.arrays))}, {size / 1e9:.2f} GB, "
        f"in {time.perf_counter() - started:.0f} s -> {options.out}"
    )
    return 0


COMMAND = Command("convert", DESCRIPTION, add_arguments, run)
main = COMMAND.main
