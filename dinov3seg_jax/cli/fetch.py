"""`dinov3seg fetch`: a released model by its name, downloaded, checked and converted once."""

import argparse
import sys
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command

DESCRIPTION = "download a released model, or take its files, and keep it under its name"
EPILOG = """\
The variables of huggingface_hub hold: HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME. Models are kept in the folder
that DINOV3SEG_MODELS names; default: ~/.local/share/dinov3seg_jax. See docs/models.md."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.epilog = EPILOG
    parser.add_argument("name", metavar="NAME", help="of a model that `dinov3seg models` lists")
    parser.add_argument(
        "--source",
        nargs="+",
        default=(),
        metavar="FILE",
        help="files that you have, or links to them, instead of the published address",
    )
    parser.add_argument(
        "--accept-licence",
        "--accept_licence",
        action="store_true",
        help="accept the terms of a model that asks for it, which a terminal is asked otherwise",
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Fetch one model, and say what to type next.

    Raises:
        UserError: see `zoo.fetch.fetch`.
    """
    from dinov3seg_jax.store.released import RELEASED
    from dinov3seg_jax.zoo.fetch import fetch, unchecked

    def agreed(terms: str) -> bool:
        return options.accept_licence or _ask(options.name, terms)

    folder = fetch(options.name, options.source, agreed)
    for file, digest in unchecked(options.name).items():
        print(f"{file}: sha256 {digest}, with nothing published here to compare it with")
    print(f"{options.name} is kept in {folder}; next:")
    if RELEASED[options.name].use == "predict":
        print(f'  dinov3seg predict --model {options.name} --image photo.jpg --classes "dog, grass"')
    else:
        print(f"  dinov3seg train --config CONFIG --config.init_from={options.name}")
    return 0


def _ask(name: str, terms: str) -> bool:
    """Ask on a terminal; nobody else can answer."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input(f"{name}: {terms}\nDo you accept these terms? [y/N] ")
    except EOFError:
        return False
    return answer.strip().lower() in ("y", "yes")


COMMAND = Command("fetch", DESCRIPTION, add_arguments, run)
main = COMMAND.main
