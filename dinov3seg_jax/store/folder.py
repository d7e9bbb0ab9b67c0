"""What does this folder hold? The one place that answers; JAX is not loaded until arrays are asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError, one_line, reason
from dinov3seg_jax.files import EXPORT_FILE
from dinov3seg_jax.store.converted import ConvertedFolder, is_converted
from dinov3seg_jax.store.kept import find_model
from dinov3seg_jax.store.run import NEWEST, RunFolder

if TYPE_CHECKING:
    import jax

    from dinov3seg_jax.models.parameters import Parameters

ModelFolder = RunFolder | ConvertedFolder  # they have the same attributes and methods; `kind` tells them apart


def open_folder(path: str | Path | ModelFolder, step: str = NEWEST) -> ModelFolder:
    """The folder of a model; what is wrong with it is said when that is read.

    Args:
        path: of a run, or of converted weights; or the name of a released model that was fetched. A folder that holds
            neither counts as a run's. A folder that is open is returned as it is.
        step: of a run: "newest", "best" (by what was scored while it trained), or a number.

    Raises:
        UserError: the folder holds an exported model, the path is none, or a released model was not fetched; or the
            run has no such step, or converted weights are asked for one.
    """
    if isinstance(path, RunFolder | ConvertedFolder):
        return path
    try:
        folder = find_model(path)
        if is_converted(folder):
            if step != NEWEST:
                raise UserError(f"'{path}' holds converted weights, which have no steps; leave the step out.")
            return ConvertedFolder(folder)
        exported = (folder / EXPORT_FILE).is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise UserError(f"'{one_line(path, 100)}' cannot be read ({reason(error)}); check the path.") from error
    if exported:
        raise UserError(
            f"'{path}' holds an exported model, which dinov3seg_jax.load_exported reads; name the run that it was "
            "exported from."
        )
    return RunFolder(folder, step)


def load_parameters(
    path: str | Path, shardings: "Mapping[str, jax.sharding.Sharding] | None" = None
) -> "tuple[Config, Parameters]":
    """The config of a folder, and all of its parameters.

    Args:
        path: of a run, whose newest step is read, or of converted weights.
        shardings: by parameter name; default the first device.

    Raises:
        UserError: the folder is neither, or its arrays cannot be read.
    """
    folder = open_folder(path)
    return folder.config, folder.arrays(shardings=shardings)
