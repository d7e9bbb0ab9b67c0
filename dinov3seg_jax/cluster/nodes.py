"""What a machine of a cluster says of itself, and whether it can do what the machine that asks can do."""

import importlib.metadata
import platform
from collections.abc import Mapping

from dinov3seg_jax.cache.traced import SOURCE
from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.files import expanded
from dinov3seg_jax.store.folder import open_folder

PACKAGES = ("dinov3seg_jax", "jax", "jaxlib", "flax", "numpy", "pillow")
Words = dict[str, str]  # by what they are about


def versions() -> Words:
    """Of what results depend on."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"Python": ".".join(platform.python_version_tuple()[:2]), **found, "source": SOURCE[:12]}


def sees(weights: str, step: str, picture: str, probe: str) -> Words:
    """What is found here of the paths that workers need; "" for what is as it should be.

    Args:
        weights, step: of the model.
        picture: one of those to come.
        probe: a file that the asking machine wrote into the folder of the results.
    """
    found = {}
    try:
        found[weights] = open_folder(expanded(weights), step).fingerprint
    except UserError as error:
        found[weights] = one_line(error, 300)
    for path in (picture, probe):
        try:
            found[path] = "" if expanded(path).exists() else "is not there"
        except (OSError, UserError) as error:
            found[path] = one_line(error, 300)
    return found


def difference(own: Mapping[str, str], its: Mapping[str, str]) -> str:
    """In words, in what a machine differs from this one; empty if in nothing."""
    differing = [word for word in own if own[word] != its.get(word)]
    return ", ".join(f"{word} {its.get(word, 'is missing')} instead of {own[word]}" for word in differing)
