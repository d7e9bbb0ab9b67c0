"""Which segmenter serves a folder: the one place that knows.

What can be told without JAX is told without it, since loading that takes seconds.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.config_files import override_inference
from dinov3seg_jax.errors import UserError, note
from dinov3seg_jax.inference.calibration import Calibration, read_calibration
from dinov3seg_jax.store.converted import ConvertedFolder, refuse_other_model
from dinov3seg_jax.store.folder import ModelFolder, open_folder
from dinov3seg_jax.store.run import NEWEST

if TYPE_CHECKING:
    import jax

    from dinov3seg_jax.inference.base import BaseSegmenter
    from dinov3seg_jax.models.parameters import Parameters

# "whole": a converted model with its head; "linear": a converted head, whose backbone is in another folder.
Way = Literal["run", "whole", "zero_shot", "linear"]
TOWERS = ("vision/", "text/")
HEADS = ("decoder/", "reduction/")  # of CAT-Seg, of CAFe-DINO
WITH_BOTH = {
    "dinotxt": "what `dinov3seg convert dinotxt` writes from dinov3.txt's two files",
    "tips": "what `dinov3seg convert tips` writes from the files of both towers",
}


def way_of(folder: ModelFolder, zero_shot: bool = False) -> Way:
    """How a folder is used: the towers alone if that is asked for, or if the folder can hold nothing else."""
    if folder.kind == "run" or zero_shot:
        return "zero_shot" if zero_shot else "run"
    if folder.manifest.kind == "linear":
        return "linear"
    whole = all(any(name.startswith(part) for name in folder.manifest.arrays) for part in (*TOWERS, HEADS))
    return "whole" if whole else "zero_shot"


def section_of(way: Way) -> Literal["inference", "zero_shot"]:
    """The section of `Config` that says how pictures are segmented in this way."""
    return "zero_shot" if way == "zero_shot" else "inference"


@dataclass(frozen=True)
class OpenModel:
    """A model whose arrays are read."""

    folder: ModelFolder
    way: Way
    config: Config  # of the run, or what converted weights say of their model
    parameters: "Parameters"

    def segmenter(self, config: Config, devices: "Sequence[jax.Device]" = ()) -> "BaseSegmenter":
        """The segmenter that serves it.

        Args:
            config: says how pictures are segmented; its `model` is the one of `self.config`.
            devices: that share batches of pictures out, where the segmenter can; default the first.

        Raises:
            UserError: the options do not fit together, or the model lacks a part.
        """
        if self.way == "zero_shot":
            from dinov3seg_jax.inference.zero_shot import ZeroShotSegmenter

            return ZeroShotSegmenter(config, self.parameters, self.folder.checksums)
        return head_segmenter(config, self.parameters, devices)


def head_segmenter(config: Config, parameters: "Parameters", devices: "Sequence[jax.Device]" = ()) -> "BaseSegmenter":
    """The segmenter of a model with a trained head; arguments and errors as for `OpenModel.segmenter`."""
    if config.model.linear.classes:
        from dinov3seg_jax.inference.linear import LinearSegmenter

        return LinearSegmenter(config, parameters)
    if config.model.cafedino.layers:
        from dinov3seg_jax.inference.cafedino import CafeDinoSegmenter

        return CafeDinoSegmenter(config, parameters)
    if config.inference.resize == "catseg":
        from dinov3seg_jax.inference.catseg import CatSegSegmenter

        return CatSegSegmenter(config, parameters)
    from dinov3seg_jax.inference.segmenter import Segmenter

    return Segmenter(config, parameters, devices)


def open_model(path: str | Path | ModelFolder, zero_shot: bool = False, around: Config | None = None) -> OpenModel:
    """Read a model.

    Args:
        path: the folder of a run, whose newest checkpoint is read; of converted dinov3.txt weights; or of a converted
            linear head. A run of which another step is meant comes from `store.folder.open_folder`.
        zero_shot: read the two towers of dinov3.txt alone.
        around: of a linear head: its model, and in `init_from` its converted backbone.

    Raises:
        UserError: there is no such model.
    """
    folder = open_folder(path)
    way = way_of(folder, zero_shot)
    if way == "linear" and around is not None:
        return OpenModel(folder, way, around, _read_probe(around.model, around.init_from, folder))
    if way in ("zero_shot", "linear"):
        _refuse_without_towers(folder)
        return OpenModel(folder, "zero_shot", folder.config, folder.arrays(TOWERS))
    return OpenModel(folder, way, folder.config, folder.arrays())


def with_own_recipe(
    config: Config, path: str | Path | ModelFolder, zero_shot: bool, overrides: Sequence[str]
) -> Config:
    """The config of an evaluation, with the recipe that converted weights say is theirs, if they say one.

    Args:
        config: of a recipe's file and the command line.
        path, zero_shot: as for `open_model`.
        overrides: the command line's part of `config`, which counts most; what else differs from the defaults counts
            more than what the weights say.

    Raises:
        UserError: the folder holds no model.
    """
    folder = open_folder(path)
    way = way_of(folder, zero_shot)
    section = section_of(way)
    if folder.kind == "run" or way == "linear" or section not in folder.manifest.config:
        return config
    asked = dataclasses.asdict(getattr(config, section))
    usual = dataclasses.asdict(getattr(Config(), section))
    typed = {text.removeprefix(f"{section}.").partition("=")[0] for text in overrides}
    changed = {option: value for option, value in asked.items() if value != usual[option] or option in typed}
    own: Any = {section: dataclasses.replace(getattr(folder.config, section), **changed)}
    return dataclasses.replace(config, **own)


def load(
    path: str | Path | ModelFolder,
    overrides: Sequence[str] = (),
    *,
    zero_shot: bool = False,
    step: str = NEWEST,
    devices: "Sequence[jax.Device]" = (),
) -> "BaseSegmenter":
    """Read a model, ready to segment pictures.

    Args:
        path: the folder of a run, whose newest whole checkpoint is read; or of converted weights that segment
            without training: dinov3.txt's, or a whole model such as CAT-Seg; or the name of
            a released model that `dinov3seg fetch` brought.
        overrides: changes of its config, like "inference.image_size=320"; with dinov3.txt alone, like
            "zero_shot.mode=whole".
        zero_shot: use the towers of dinov3.txt alone, without the trained head of a run. Converted weights have no
            head and are used so in any case.
        step: of a run: "newest", "best" (by what was scored while it trained), or a number.
        devices: as for `OpenModel.segmenter`.

    Returns:
        A segmenter; its `segment(image, names)` labels a picture.

    Raises:
        UserError: there is no model, or an override does not fit.
    """
    model = open_model(open_folder(path, step), zero_shot)
    config = override_inference(model.config, overrides, section_of(model.way))
    segmenter = model.segmenter(config, devices)
    segmenter.calibration = calibration_of(model.folder, model.way, config)
    return segmenter


def calibration_of(folder: ModelFolder, way: Way, config: Config) -> Calibration | None:
    """What makes the confidence of a model a probability (`dinov3seg calibrate`); None where nothing does.

    A note says where one is of other weights and so does not count, or of other options.

    Args:
        folder: of the model.
        way: in which it is used.
        config: says how.

    Raises:
        UserError: the file is damaged.
    """
    found = read_calibration(folder.path, way)
    if found is None:
        return None
    if found.weights != folder.fingerprint:
        note(f"'{folder.path}' was calibrated before its weights changed, which does not count; calibrate it again")
        return None
    if found.options != json.loads(json.dumps(dataclasses.asdict(getattr(config, section_of(way))))):
        note(f"'{folder.path}' was calibrated with other options, so its confidence may be off; calibrate it again")
    return found


def _refuse_without_towers(folder: ModelFolder) -> None:
    if folder.kind == "run":
        if folder.config.model.linear.classes:
            raise UserError(f"'{folder.path}' holds a linear head, which knows no text; leave --zero_shot out.")
        return
    missing = [tower for tower in TOWERS if not any(name.startswith(tower) for name in folder.manifest.arrays)]
    if missing:
        raise UserError(
            f"'{folder.path}' holds {folder.manifest.kind} weights without {' and '.join(missing)}; zero-shot "
            f"segmentation needs {WITH_BOTH.get(folder.manifest.kind, WITH_BOTH['dinotxt'])}."
        )
    if folder.config.model.towers == "clip":
        raise UserError(
            f"'{folder.path}' holds CLIP's towers, for which there is no zero-shot recipe here; they begin a training "
            "(--config.init_from), or take a whole CAT-Seg."
        )


def _read_probe(model: ModelConfig, backbone: str, head: ModelFolder) -> "Parameters":
    """Parameters of a converted linear head and its converted backbone.

    Args:
        model: says the sizes, and the layers that the head sees, which no file does.
        backbone: a folder that `dinov3seg convert dinov3` wrote.
        head: one that `dinov3seg convert linear` wrote.

    Raises:
        UserError: a folder is missing or does not fit the model.
    """
    if not backbone:
        raise UserError(f"'{head.path}' is a linear head alone; set --config.init_from= to its converted backbone.")
    if not model.linear.classes:
        raise UserError(
            f"'{head.path}' is a linear head; set --config.model.linear.classes, as configs/linear_ade.py does."
        )
    from dinov3seg_jax.models.graph import build

    _, described = build(model)
    parameters: Parameters = {}
    for folder in (ConvertedFolder(backbone), ConvertedFolder(head.path)):
        refuse_other_model(folder.path, folder.manifest, model, described)
        parameters |= folder.arrays()
    if missing := sorted(described.keys() - parameters.keys()):
        raise UserError(
            f"'{backbone}' and '{head.path}' lack '{missing[0]}'; name the backbone that the head belongs to."
        )
    return parameters
