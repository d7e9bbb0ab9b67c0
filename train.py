"""Train dinov3.seg: `python train.py --config configs/ade.py [--config.train.steps=100] [--dry_run]`."""

import argparse
import sys

from dinov3seg_jax.errors import run_command


def main() -> None:
    """Parse the command line, check the config, train."""
    from dinov3seg_jax.config import load_config, split_overrides
    from dinov3seg_jax.processes import add_arguments, joined

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True, help="a file in configs/")
    parser.add_argument("--dry_run", action="store_true", help="trace the step and print what it costs; no data needed")
    parser.add_argument("--topology", metavar="SLICE", help="with --dry_run: compile for TPUs, as in v5e:16x16")
    add_arguments(parser)
    overrides, rest = split_overrides(sys.argv[1:])
    options = parser.parse_args(rest)
    if options.topology and not options.dry_run:
        parser.error("--topology goes with --dry_run")
    config = load_config(options.config, overrides)
    # Imported late, so that a mistake in the config is reported before a device starts.
    if options.dry_run:
        from dinov3seg_jax.costs.dry_run import dry_run

        dry_run(config, options.topology or "")
    else:
        from dinov3seg_jax.cache.programs import keep_programs
        from dinov3seg_jax.training.loop import train

        keep_programs()
        with joined(options):
            train(config)


if __name__ == "__main__":
    run_command(main)
