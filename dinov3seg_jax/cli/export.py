"""`dinov3seg export`, and `python -m dinov3seg_jax.export`."""

import argparse
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command, add_step_argument, given_path
from dinov3seg_jax.store.folder import open_folder

DESCRIPTION = "write a run's model as programs that need only JAX, or as ONNX files"
EPILOG = """\
--config.inference.OPTION=VALUE changes how pictures are segmented, as in --config.inference.mode=whole."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    files = parser.add_argument_group("files")
    files.add_argument("--checkpoint", "--model", type=given_path, required=True, metavar="FOLDER", help="a run")
    add_step_argument(files)
    files.add_argument("--out", type=given_path, required=True, metavar="FOLDER", help="to write; a new one")
    programs = parser.add_argument_group("programs", EPILOG)
    programs.add_argument(
        "--format",
        choices=("jax", "onnx"),
        default="jax",
        help="programs of JAX, or files for ONNX Runtime, which are checked against the model; default: %(default)s",
    )
    programs.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        default=(),
        metavar="SIZE",
        help="of pictures: 640, or 480x640 with the height first; default: inference.image_size",
    )
    programs.add_argument("--classes", metavar="NAMES", help="as for predict; their embeddings are exported too")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Export a run's model.

    Raises:
        UserError: see `export.writer.export` and `export.onnx.export_onnx`.
    """
    asked = (open_folder(options.checkpoint, options.step), options.out, options.sizes, options.classes, overrides)
    if options.format == "onnx":
        from dinov3seg_jax.export.onnx import export_onnx

        difference = export_onnx(*asked)
        said = f"for ONNX Runtime; scores differ from the model's by {difference:.1e} at most"
    else:
        from dinov3seg_jax.export.writer import PLATFORMS, export

        export(*asked)
        said = f"for {', '.join(PLATFORMS)}"
    total = sum(file.stat().st_size for file in options.out.iterdir())
    print(f"{options.out}: {total / 2**20:.1f} MB, {said}")
    return 0


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 640 or 480x640, the height first")
    return int(sides[0]), int(sides[-1])


COMMAND = Command("export", DESCRIPTION, add_arguments, run)
main = COMMAND.main
