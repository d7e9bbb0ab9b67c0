"""`dinov3seg calibrate`: make a model's confidence the probability that it is right."""

import argparse
import dataclasses
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command, add_folder_argument, add_step_argument
from dinov3seg_jax.config import DatasetConfig
from dinov3seg_jax.config_files import load_config, override_inference
from dinov3seg_jax.data.datasets import open_dataset
from dinov3seg_jax.data.held_out import open_evaluation
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.places import check_writable

DESCRIPTION = "fit a model's confidence to labelled pictures; labels stay as they are"
OF_DATA = "data."  # overrides of a recipe; all others are of the model
EPILOG = """\
--config.inference.OPTION=VALUE changes how pictures are segmented, as in predict; a calibration is for these options.
--config.data.eval.OPTION=VALUE changes the recipe's data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    model = parser.add_argument_group("model", EPILOG)
    add_folder_argument(model, "; calibration.json is written there", required=True)
    add_step_argument(model)
    model.add_argument("--zero_shot", action="store_true", help="as for predict; it has a calibration of its own")
    data = parser.add_argument_group("labelled pictures that were not trained on")
    which = data.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--data", metavar="FOLDER", help="with images, masks and classes.json, or a prepared one (docs/data.md)"
    )
    which.add_argument("--config", metavar="RECIPE", help="those that this recipe scores on")
    data.add_argument("--split", default="eval", help="of --data; default: %(default)s")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Fit a temperature, write it beside the model, and say what it does.

    Raises:
        UserError: the model or the data cannot be used, or there is nothing to fit.
    """
    of_data = [override for override in overrides if override.startswith(OF_DATA)]
    if options.config:
        dataset = open_evaluation(load_config(options.config, of_data).data)
    elif of_data:
        raise UserError(f"--config.{of_data[0]} is for --config RECIPE; with --data give --split")
    else:
        dataset = open_dataset(DatasetConfig(name="folder", split=options.split, root=options.data))

    from dinov3seg_jax.cache.programs import keep_programs
    from dinov3seg_jax.evaluation.calibrate import fit
    from dinov3seg_jax.inference.calibration import Calibration, write_calibration
    from dinov3seg_jax.inference.load import open_model, section_of
    from dinov3seg_jax.store.folder import open_folder

    keep_programs()
    folder = open_folder(options.checkpoint, options.step)
    check_writable(folder.path)
    model = open_model(folder, options.zero_shot)
    section = section_of(model.way)
    config = override_inference(
        model.config, [override for override in overrides if not override.startswith(OF_DATA)], section
    )
    segmenter = model.segmenter(config)
    found = fit(segmenter, dataset)
    calibration = Calibration(
        segmenter.confidence_kind,
        found.temperature,
        model.folder.fingerprint,
        dataclasses.asdict(getattr(config, section)),
    )
    path = write_calibration(model.folder.path, model.way, calibration)
    before, after = found.errors
    print(f"{len(dataset.source)} pictures, {found.pixels:,} labelled pixels, {found.accuracy:.1%} of them right")
    print(f"temperature {found.temperature:.3g}: expected calibration error {before:.1%} before, {after:.1%} after")
    print(f"{path} is written; predict and load use it from now on", flush=True)
    return 0


COMMAND = Command("calibrate", DESCRIPTION, add_arguments, run)
main = COMMAND.main
