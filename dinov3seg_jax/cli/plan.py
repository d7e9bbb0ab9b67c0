"""`dinov3seg plan`: what a training step costs, before there are data, weights or devices."""

import argparse
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command, amount_of_memory, count
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.errors import UserError

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
    machine = parser.add_argument_group("machine")
    add_topology(machine)
    machine.add_argument(
        "--memory",
        type=amount_of_memory,
        metavar="SIZE",
        default=0,
        help="of each device, as in 24GB: say whether a step fits, and if not, which options make it fit",
    )
    machine.add_argument(
        "--devices", type=count, metavar="N", default=0, help="plan for so many GPUs, which need not be here"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print what a training step costs; the status is 1 if it does not fit `--memory` as it is.

    Raises:
        UserError: the recipe cannot be used, or does not fit the slice or the devices.
    """
    if options.topology and options.devices:
        raise UserError("--topology and --devices both say how many devices there are; give one of them.")
    config = load_config(options.config, overrides)
    return 0 if plan(config, options.topology, options.devices, options.memory) else 1


def plan(config: Config, topology: str = "", devices: int = 0, memory: int = 0) -> bool:
    """See `costs.dry_run`, which is imported late: a mistake in the config is reported before a device starts."""
    from dinov3seg_jax.costs.dry_run import dry_run

    return dry_run(config, topology, devices, memory)


COMMAND = Command("plan", DESCRIPTION, add_arguments, run)
main = COMMAND.main
