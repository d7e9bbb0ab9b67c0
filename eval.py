"""Score a trained model: `python eval.py --config configs/quickstart.py --checkpoint runs/quickstart`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3seg_jax.errors import run_command

if TYPE_CHECKING:
    from dinov3seg_jax.config import Config


def main() -> None:
    """Parse the command line, check the config, evaluate."""
    from dinov3seg_jax.config import load_config, split_overrides
    from dinov3seg_jax.processes import add_arguments, joined

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a file in configs/: what to score on, and how")
    parser.add_argument(
        "--checkpoint",
        "--weights",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="of a run, of converted dinov3.txt weights, or of a converted linear head (its backbone is init_from)",
    )
    parser.add_argument(
        "--zero_shot", action="store_true", help="dinov3.txt alone, untrained; so for its converted weights in any case"
    )
    add_arguments(parser)
    overrides, rest = split_overrides(sys.argv[1:])
    options = parser.parse_args(rest)
    config = load_config(options.config, overrides)
    with joined(options):
        score(config, options.checkpoint, options.zero_shot)


def score(config: "Config", checkpoint: Path, zero_shot: bool) -> None:
    """Evaluate and print the scores."""
    # Imported late, so that a mistake in the config is reported before a device starts.
    from dinov3seg_jax.cache.programs import keep_programs
    from dinov3seg_jax.evaluation.evaluate import evaluate, evaluate_benchmarks, report_folder
    from dinov3seg_jax.processes import say

    keep_programs()
    folder = report_folder(checkpoint, zero_shot)
    if config.benchmarks:
        say(f"\n{evaluate_benchmarks(config, checkpoint, zero_shot)}")
        say(f"{folder / 'benchmarks.md'} and benchmarks.json are written")
        return
    result = evaluate(config, checkpoint, zero_shot)
    for key in ("miou", "seen_miou", "unseen_miou", "pixel_accuracy"):
        if key in result:
            say(f"{key:15s} {result[key]:6.2f} %")
    say(f"{folder / 'report.md'} and metrics.json are written")


if __name__ == "__main__":
    run_command(main)
