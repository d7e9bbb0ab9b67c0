"""`dinov3seg plan`: what a training step costs, before there are data, weights or devices."""

import argparse
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config

DESCRIPTION = "print what a training step costs: parameters, FLOPs, bytes; no data needed"
CONFIG_EPILOG = """\
--config.SECTION.OPTION=VALUE changes an option of the recipe, as in --config.train.steps=100;
dinov3seg_jax/config.py has all of them."""


def add_config(parser: argparse.ArgumentParser) -> None:
    """The option that names a recipe."""
    group = parser.add_argument_group("recipe", CONFIG_EPILOG)
    group.add_argument(
        "--config",
        required=True,
        metavar="RECIPE",
        help="a Python file, or a recipe of this package: ade and configs/ade.py are the same",
    )


def add_topology(group: argparse._ActionsContainer) -> None:
    """The option that names a slice of TPUs."""
    group.add_argument("--topology", metavar="SLICE", default="", help="also compile for these TPUs, as in v5e:16x16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_config(parser)
    add_topology(parser.add_argument_group("machine"))


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print what a training step costs.

    Raises:
        UserError: the recipe cannot be used, or does not fit the slice.
    """
    plan(load_config(options.config, overrides), options.topology)
    return 0


def plan(config: Config, topology: str) -> None:
    """See `costs.dry_run`, which is imported late: a mistake in the config is reported before a device starts."""
    from dinov3seg_jax.costs.dry_run import dry_run

    dry_run(config, topology)


COMMAND = Command("plan", DESCRIPTION, add_arguments, run)
main = COMMAND.main
