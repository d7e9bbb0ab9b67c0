"""`dinov3seg train`, and `python train.py`."""

import argparse
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command
from dinov3seg_jax.cli.plan import add_config, add_topology, plan
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.processes import add_process_arguments, joined

DESCRIPTION = "train a model by a recipe; give the same command again to go on after a stop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_config(parser)
    planning = parser.add_argument_group("planning", "the same as `dinov3seg plan`")
    planning.add_argument("--dry_run", action="store_true", help="print what a step costs; no data needed")
    add_topology(planning)
    add_process_arguments(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Train, or say what that would cost.

    Raises:
        UserError: the recipe, the data or the run's folder cannot be used.
    """
    if options.topology and not options.dry_run:
        raise UserError("--topology goes with --dry_run; add that, or leave it out.")
    config = load_config(options.config, overrides)
    if options.dry_run:
        plan(config, options.topology)
        return 0
    # Imported late, so that a mistake in the config is reported before a device starts.
    from dinov3seg_jax.cache.programs import keep_programs
    from dinov3seg_jax.evaluation.validation import train

    keep_programs()
    with joined(options):
        train(config)
    return 0


COMMAND = Command("train", DESCRIPTION, add_arguments, run)
main = COMMAND.main
