"""`dinov3seg plan`: what a training step costs, or predictions, before there are data, weights or devices."""

import argparse
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command, amount_of_memory, count
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.data.benchmark_sets import BENCHMARKS
from dinov3seg_jax.errors import UserError, did_you_mean

DESCRIPTION = "print what a training step or predictions cost: parameters, FLOPs, bytes; no data needed"
LISTS = (20, 150, 847)  # names, of which the table of predictions has a row each
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
    predictions = parser.add_argument_group("predictions")
    predictions.add_argument("--predict", action="store_true", help="plan predictions, not a training step")
    predictions.add_argument(
        "--names", metavar="N,N", default="", help="lengths of class lists; default: 20,150,847 (with --predict)"
    )
    predictions.add_argument(
        "--benchmark", metavar="NAME", default="", help="the names and pictures of a benchmark, as in ade20k_847"
    )
    predictions.add_argument(
        "--batch_size", type=count, metavar="N", default=0, help="pictures at once on each device; default: 1"
    )


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print what a training step costs; the status is 1 if it does not fit `--memory` as it is. Or: predictions.

    Raises:
        UserError: the recipe cannot be used, or does not fit the slice or devices, or options contradict each other.
    """
    if options.topology and options.devices:
        raise UserError("--topology and --devices both say how many devices there are; give one of them.")
    if options.predict:
        return _plan_prediction(options, overrides)
    for option in ("names", "benchmark", "batch_size"):
        if getattr(options, option):
            raise UserError(f"--{option} is for predictions; add --predict.")
    config = load_config(options.config, overrides)
    return 0 if plan(config, options.topology, options.devices, options.memory) else 1


def _plan_prediction(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    for option in ("devices", "memory"):
        if getattr(options, option):
            raise UserError(f"--{option} is for a training step; leave it out, or --predict.")
    if options.names and options.benchmark:
        raise UserError("--names and --benchmark both say how many names there are; give one of them.")
    if options.benchmark and options.benchmark not in BENCHMARKS:
        meant = did_you_mean(options.benchmark, BENCHMARKS) or f"; there are {', '.join(BENCHMARKS)}"
        raise UserError(f"--benchmark {options.benchmark} is not known{meant}.")
    lists = _lengths(options.names) if options.names else LISTS
    config = load_config(options.config, overrides)
    from dinov3seg_jax.costs.prediction import plan_prediction  # late, as `costs.dry_run` below

    plan_prediction(config, lists, options.topology, options.batch_size or 1, options.benchmark)
    return 0


def _lengths(text: str) -> tuple[int, ...]:
    try:
        return tuple(count(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"--names {text}: {error}; give numbers of names, as in 20,150,847.") from error


def plan(config: Config, topology: str = "", devices: int = 0, memory: int = 0) -> bool:
    """See `costs.dry_run`, which is imported late: a mistake in the config is reported before a device starts."""
    from dinov3seg_jax.costs.dry_run import dry_run

    return dry_run(config, topology, devices, memory)


COMMAND = Command("plan", DESCRIPTION, add_arguments, run)
main = COMMAND.main
