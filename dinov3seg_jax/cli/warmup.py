"""`dinov3seg warmup`: compile programs and embed names now, so that later processes find them on disk."""

import argparse
import time
from collections.abc import Sequence

import numpy as np

from dinov3seg_jax.cli.parsing import Command
from dinov3seg_jax.cli.request import (
    add_class_arguments,
    add_model_arguments,
    check_request,
    load_model,
    with_own_config,
)
from dinov3seg_jax.errors import UserError

DESCRIPTION = "compile programs and embed names ahead of time, for all later processes"
SIZES = "640x480,480x640,1920x1080"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    asked = parser.add_argument_group("what will be asked")
    asked.add_argument(
        "--classes",
        default="thing",
        metavar="NAMES",
        help="as for predict; lists of similar lengths share programs; default: %(default)s",
    )
    asked.add_argument(
        "--sizes", default=SIZES, metavar="WxH,...", help="of pictures, the width first; default: %(default)s"
    )
    add_class_arguments(parser)
    add_model_arguments(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Segment grey pictures of some sizes, and say how long each step took.

    Raises:
        UserError: the model, the names or the sizes cannot be used, or nothing can be kept.
    """
    request = check_request(options, overrides)
    sizes = [_size(text) for text in options.sizes.split(",")]
    request = with_own_config(request)

    from dinov3seg_jax.cache.programs import keep_programs

    folder = keep_programs()
    if folder is None:
        raise UserError(
            "nothing can be kept, as the cache is off, cannot be written, or is not yours alone; set DINOV3SEG_CACHE "
            "to a folder of yours"
        )
    started = time.perf_counter()
    model, asked = load_model(request)
    print(f"loaded in {time.perf_counter() - started:.1f} s", flush=True)
    for width, height in sizes:
        started = time.perf_counter()
        grey = np.full((height, width, 3), 128, np.uint8)
        model.segment_arrays([grey] * options.batch, asked, options.batch)
        count = f"{options.batch} of {width} x {height}, {len(asked.rows)} names"
        print(f"{count}: {time.perf_counter() - started:.1f} s", flush=True)
    print(f"programs are kept in {folder}", flush=True)
    return 0


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.strip().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) * int(height)):
        raise UserError(f"--sizes holds '{text}', which is no size; write width and height as in 640x480")
    return int(width), int(height)


COMMAND = Command("warmup", DESCRIPTION, add_arguments, run)
main = COMMAND.main
