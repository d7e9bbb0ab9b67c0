"""Where fetched models are kept, and the folder that a name stands for. Nothing here downloads."""

import os
from pathlib import Path

from dinov3seg_jax.errors import UserError, did_you_mean, note, one_line
from dinov3seg_jax.files import expanded
from dinov3seg_jax.store.converted import is_converted
from dinov3seg_jax.store.released import RELEASED

VARIABLE = "DINOV3SEG_MODELS"


def models_folder() -> Path:
    """What `DINOV3SEG_MODELS` names, or a folder among the user's data.

    Raises:
        UserError: the user has no home to keep them in.
    """
    if named := os.environ.get(VARIABLE, ""):
        return expanded(named)
    base = os.environ.get("XDG_DATA_HOME", "")
    try:
        return (Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share") / "dinov3seg_jax"
    except RuntimeError:
        raise UserError(f"there is no home to keep models in; set {VARIABLE} to a folder.") from None


def is_kept(name: str) -> bool:
    """Whether a released model was fetched."""
    return is_converted(models_folder() / name)


def find_model(path: str | Path) -> Path:
    """The folder of a model: that of a released model where its name is given, else the path itself.

    A folder on disk wins over a released model of the same name.

    Raises:
        UserError: the model of that name was not fetched; or there is neither a folder nor a model of the name, but
            one whose name is alike.
    """
    folder, name = expanded(path), str(path)
    if name not in RELEASED:
        if os.sep not in name and (hint := did_you_mean(name, RELEASED)) and not folder.exists():
            raise UserError(
                f"there is no folder '{one_line(name, 100)}', and no model of that name{hint}; dinov3seg models lists "
                "what can be had."
            )
        return folder
    if folder.is_dir():
        note(f"'{name}' is the folder of that name here, not the released model; give its whole path to say so")
        return folder
    if not is_kept(name):
        raise UserError(f"'{name}' is not here yet; run dinov3seg fetch {name}.")
    return models_folder() / name
