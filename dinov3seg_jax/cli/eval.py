"""`dinov3seg eval`, and `python eval.py`."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from dinov3seg_jax.cli.parsing import Command, add_folder_argument, add_step_argument
from dinov3seg_jax.cli.plan import add_config
from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.processes import add_process_arguments, joined

DESCRIPTION = "score a model on a data set, or on the benchmarks"
HEADLINES = ("miou", "seen_miou", "unseen_miou", "pixel_accuracy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_config(parser)
    model = parser.add_argument_group("model")
    more = " (dinov3seg models); or a converted linear head (set init_from to its backbone)"
    add_folder_argument(model, more, required=True)
    add_step_argument(model)
    model.add_argument(
        "--zero_shot",
        action="store_true",
        help="use the towers alone, without a trained head; always so for converted weights",
    )
    add_process_arguments(parser)


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Score a model.

    Raises:
        UserError: the recipe, the model or the data cannot be used.
    """
    config = load_config(options.config, overrides)
    with joined(options):
        score(config, options.checkpoint, options.zero_shot, overrides, options.step)
    return 0


def score(config: Config, checkpoint: Path, zero_shot: bool, typed: Sequence[str] = (), step: str = "newest") -> None:
    """Evaluate and print the scores; `typed` are the command line's options."""
    # Imported late, so that a mistake in the config is reported before a device starts.
    from dinov3seg_jax.cache.programs import keep_programs
    from dinov3seg_jax.evaluation.evaluate import evaluate, evaluate_benchmarks, report_folder
    from dinov3seg_jax.processes import say

    keep_programs()
    folder = report_folder(checkpoint, zero_shot, step)
    if config.benchmarks:
        say(f"\n{evaluate_benchmarks(config, checkpoint, zero_shot, typed, step)}")
        say(f"{folder / 'benchmarks.md'} and benchmarks.json are written")
        return
    result = evaluate(config, checkpoint, zero_shot, typed, step)
    for key in HEADLINES:
        if key in result:
            scored = math.isfinite(result[key])
            say(f"{key:15s} {result[key]:6.2f} %" if scored else f"{key:15s}      – (none of these classes occurs)")
    say(f"{folder / 'report.md'} and metrics.json are written")


COMMAND = Command("eval", DESCRIPTION, add_arguments, run)
main = COMMAND.main
