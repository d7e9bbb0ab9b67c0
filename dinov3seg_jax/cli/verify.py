"""`dinov3seg verify`, and `python -m convert verify`; docs/verify.md says more."""

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dinov3seg_jax.cli.parsing import Command, given_path
from dinov3seg_jax.errors import UserError

if TYPE_CHECKING:
    from dinov3seg_jax.convert.verify import Row

DESCRIPTION = "compare converted weights with PyTorch's outputs, or with their source"
TOLERANCE = 1e-4
SHOWN = 10  # arrays of a comparison with the source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "folders",
        type=given_path,
        nargs="+",
        metavar="FOLDER",
        help="converted weights; several folders are parts of one model",
    )
    compared = parser.add_argument_group("compared with", "besides the checksums of the folders themselves")
    compared.add_argument(
        "--against", type=given_path, metavar="FILE.npz", help="inputs and outputs, see docs/verify.md"
    )
    compared.add_argument(
        "--source", type=given_path, nargs="+", metavar="FILE", help="what the one folder was converted from"
    )
    options = parser.add_argument_group("options")
    options.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        metavar="X",
        help="largest absolute error allowed; default: %(default)s",
    )
    options.add_argument("--rounded_periods", action="store_true", help="as in the conversion")
    options.add_argument("--take", default="", metavar="NAME", help="as in the conversion")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Verify converted folders.

    Raises:
        UserError: a folder or a file cannot be read, or they do not belong together.
    """
    if not 0 <= options.tolerance < math.inf:
        raise UserError(f"the tolerance {options.tolerance} is no distance; give a number from 0 on.")
    if options.source and len(options.folders) > 1:
        raise UserError("--source belongs to one folder; verify the folders one by one.")
    from dinov3seg_jax.convert.verify import check_manifest, compare_outputs, compare_with_source, label_of, read_cases

    passed = all([check_manifest(folder) for folder in options.folders])
    if options.source:
        rows = compare_with_source(
            options.folders[0], options.source, overrides, rounded_periods=options.rounded_periods, take=options.take
        )
        equal = sum(row.passed for row in rows)
        print(
            f"{equal} of {len(rows)} arrays are those of the source, bit for bit" + (":" if equal < len(rows) else "")
        )
        _print_table([row for row in sorted(rows, key=lambda row: -row.error) if not row.passed][:SHOWN], 0.0)
        passed &= equal == len(rows)
    if options.against:
        cases = read_cases(options.against)
        rows = compare_outputs(options.folders, cases, options.tolerance)
        _print_table(rows, options.tolerance)
        known = {row.what for row in rows}
        others = [name for case in cases for output in case.outputs if (name := label_of(case, output)) not in known]
        if others:
            print(f"not compared, as these folders have no such output: {', '.join(others)}")
        passed &= all(row.passed for row in rows)
    print("passed" if passed else "FAILED")
    return 0 if passed else 1


def _print_table(rows: "Sequence[Row]", tolerance: float) -> None:
    if not rows:
        return
    width = max(len(row.what) for row in rows)
    print(f"{'output':{width}}  {'shape':18} {'max abs error':>13} {'largest':>9}   (tolerance {tolerance:g})")
    for row in rows:
        verdict = "ok" if row.passed else "FAILED"
        print(f"{row.what:{width}}  {list(row.shape)!s:18} {row.error:13.1e} {row.largest:9.2e}   {verdict}")


COMMAND = Command("verify", DESCRIPTION, add_arguments, run)
main = COMMAND.main
