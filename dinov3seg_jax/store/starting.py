"""What the folders that a new run begins with say of its options."""

import dataclasses

from ml_collections import ConfigDict

from dinov3seg_jax.config import Config, to_config_dict
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.files import expanded
from dinov3seg_jax.store.converted import ConvertedFolder, model_config
from dinov3seg_jax.store.folder import open_folder

CROP, PICTURE, STRIDE = 24, 40, 8  # in patches: the paper's crop, picture and stride


def starting_config(init_from: str) -> ConfigDict:
    """The options of a run that `init_from` names; or those of the model that converted folders make together.

    Converted folders say nothing of crops: these have as many patches as the paper's, and so have pictures and windows
    of folders that say no recipe. Without SAM's weights the vision tower guides.

    Args:
        init_from: as `config.init_from`.

    Raises:
        UserError: it names no model, a folder that holds none, or folders that do not fit together.
    """
    if not init_from:
        raise UserError(
            "this recipe begins with a model; name its folder, as in --config finetune:runs/quickstart or "
            "--config.init_from=weights/dinotxt."
        )
    folders = [open_folder(name) for name in folders_in(init_from)]
    run = next((folder for folder in folders if folder.kind == "run"), None)
    if run is not None:
        return to_config_dict(dataclasses.replace(run.config, init_from=""))
    converted = [folder for folder in folders if isinstance(folder, ConvertedFolder)]
    config = to_config_dict(Config())
    config.model = to_config_dict(model_config(*(folder.manifest for folder in converted)))
    arrays = {name for folder in converted for name in folder.manifest.arrays}
    if not any(name.startswith("sam/") for name in arrays):
        config.model.spe = "none" if config.model.spe == "none" else "vision"
    patch = config.model.vision.patch_size
    config.data.crop_size = CROP * patch
    config.inference.image_size, config.inference.window = PICTURE * patch, CROP * patch
    config.inference.stride = STRIDE * patch
    for folder in converted:
        for section in folder.manifest.config:
            config[section] = to_config_dict(getattr(folder.config, section))
    return config


def folders_in(init_from: str) -> list[str]:
    """The folders that `config.init_from` names.

    Raises:
        UserError: there is something, but no name.
    """
    if not init_from or expanded(init_from).is_dir():
        return [init_from] if init_from else []
    folders = [folder.strip() for folder in init_from.split(",") if folder.strip()]
    if not folders:
        raise UserError(f"init_from '{init_from}' names no folder; name one, or leave it out for random weights.")
    return folders
