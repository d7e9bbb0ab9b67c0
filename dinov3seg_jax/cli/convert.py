"""`python -m convert KIND --source FILE... --out FOLDER`: official weights into this project's, exactly.

`docs/convert.md` says what each kind takes.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax.config import split_overrides
from dinov3seg_jax.convert import verify
from dinov3seg_jax.convert.recognise import KINDS
from dinov3seg_jax.convert.run import convert
from dinov3seg_jax.errors import run_command
from dinov3seg_jax.store.converted import WEIGHTS_FILE, parts


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, or verify.

    Args:
        arguments: of the command line; those of this process if None.

    Raises:
        UserError: what was asked for cannot be done; nothing is written then.
    """
    options = sys.argv[1:] if arguments is None else list(arguments)
    overrides, rest = split_overrides(options)
    parser = argparse.ArgumentParser(prog="python -m convert", description="Convert official weights.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="KIND")
    for kind, row in KINDS.items():
        _add_kind(commands.add_parser(kind, help=row.what))
    verify.add_parser(commands)
    parsed = parser.parse_args(rest)
    return parsed.run(parsed, overrides)


def _add_kind(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "What no shape tells, such as the heads of a size that was never released, is said like --config.text.heads=20."
    )
    parser.add_argument(
        "--source",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".safetensors, an index of shards or the folder that holds it, or .pth; several files of one model",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="to write")
    parser.add_argument(
        "--rounded_periods",
        action="store_true",
        help="Hugging Face's files: use rotary periods rounded to bfloat16, as in the official files",
    )
    parser.set_defaults(run=_convert)


def _convert(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    started = time.perf_counter()
    manifest = convert(options.command, options.source, options.out, overrides, rounded_periods=options.rounded_periods)
    for note in manifest.notes:
        print(f"note: {note}", file=sys.stderr)
    size = (options.out / WEIGHTS_FILE).stat().st_size
    print(
        f"{manifest.name}: {len(manifest.arrays)} arrays of {', '.join(parts(manifest.arrays))}, {size / 1e9:.2f} GB, "
        f"in {time.perf_counter() - started:.0f} s -> {options.out}"
    )
    return 0


if __name__ == "__main__":
    run_command(main)
