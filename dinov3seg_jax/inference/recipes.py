"""How pictures are segmented, in words, which go with results and scores."""

from collections.abc import Mapping
from typing import Any

from dinov3seg_jax.config import InferenceConfig, ZeroShotConfig
from dinov3seg_jax.text.prompts import load_templates

# The first version whose labels are those of this one, but for rounding: to be raised whenever the same recipe gives
# other labels. What an earlier version left half-done is then done anew, and only then.
RESULTS_VERSION = "0.1.0"


def describe_inference(recipe: InferenceConfig | Mapping[str, Any] | str) -> str:
    """Say an `InferenceConfig`, or a mapping of its fields, in words; a sentence is returned as it is."""
    if isinstance(recipe, str):
        return recipe
    options = recipe if isinstance(recipe, InferenceConfig) else InferenceConfig(**recipe)
    scale = f" at {options.tile_scale:g} of its height and width" if options.tile_scale != 1 else ""
    resized = {
        "square": f"Each picture is resized to {options.image_size} x {options.image_size} pixels",
        "short_side": f"Each picture is resized so that its short side has {options.image_size} pixels",
        "native": "Each picture keeps its own size",
        "catseg": f"Each picture is resized so that its short side has {options.image_size} pixels, and stretched to a "
        "square of that side",
        "tiled": f"Each picture{scale} is cut into overlapping tiles of {options.image_size} x {options.image_size} "
        "pixels, whose scores are blended. Each tile keeps its size",
    }["short_side" if options.mode == "slide" else options.resize]  # a linear head's recipe knows no other
    if options.mode == "slide":
        return (
            f"{resized} and is cut into windows of {options.window} pixels every {options.stride}, whose logits are "
            "averaged. A linear head: there are no prompts."
        )
    if options.mode == "whole":
        view = " and is seen as a whole."
    else:
        seen = "tile" if options.resize == "tiled" else "picture"
        whole = f"the whole {seen}" + (f" at {options.global_size} pixels" if options.global_size else "")
        merged = {
            "features": "their features are merged, averaged with those of {whole}, and decoded once",
            "logits": "each is decoded, and their mean is averaged with the prediction for {whole}",
        }[options.fusion].format(whole=whole)
        seen_at = f" (seen at {options.view_size})" if options.view_size else ""
        view = f" and is cut into windows of {options.window} pixels{seen_at} every {options.stride}; {merged}."
    prompts = ", ".join(f'"{template}"' for template in options.templates)
    return f"{resized}{view} Prompts: {prompts}."


def describe_zero_shot(recipe: ZeroShotConfig, towers: str = "dinotxt") -> str:
    """The recipe in words, which goes with every result."""
    name, head = {"tips": ("TIPSv2", "the value path's patches")}.get(
        towers, ("dinov3.txt", "the vision head's patches")
    )
    features = {"backbone": "the backbone's patches", "head": head}[recipe.patch_features]
    seen = {"slide": f"windows of {recipe.window} pixels every {recipe.stride}", "whole": "the picture as a whole"}
    return (
        f"Zero-shot {name}: {features}, {seen[recipe.mode]}, short side {recipe.short_side}, "
        f"{len(load_templates(recipe.templates))} prompts a name ({recipe.templates})."
    )
