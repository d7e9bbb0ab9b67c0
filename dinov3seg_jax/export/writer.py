"""A trained model as programs that need JAX alone: StableHLO (jax.export), weights and embeddings of names in a folder.

`dinov3seg_jax.export.scorer` reads the folder; docs/export.md says what is in it.
"""

import dataclasses
import functools
import glob
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from dinov3seg_jax.config import Config
from dinov3seg_jax.config_files import override_inference
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.export.scorer import EMBEDDINGS_FILE, VERSION, WEIGHTS_FILE, checksum_of, size_name
from dinov3seg_jax.files import EXPORT_FILE, expanded
from dinov3seg_jax.folders import copy_tree
from dinov3seg_jax.inference.classes.embeddings import ClassEmbeddings, text_encoder
from dinov3seg_jax.inference.device.precision import at_precision
from dinov3seg_jax.inference.load import way_of
from dinov3seg_jax.inference.views.local_global import check_inference, score_classes
from dinov3seg_jax.models.bound import bind_frozen
from dinov3seg_jax.models.chunked import can_chunk
from dinov3seg_jax.models.graph import ALL_FROZEN, bind, build
from dinov3seg_jax.models.parameters import AbstractParameters, Parameters
from dinov3seg_jax.models.towers import text_width
from dinov3seg_jax.places import check_writable, is_remote
from dinov3seg_jax.scratch import has_ended, scratch
from dinov3seg_jax.store.folder import ModelFolder, open_folder
from dinov3seg_jax.text.class_lists import ClassList, Names

PLATFORMS = ("cpu", "cuda", "tpu")
TEXT_TOWER = "text/"

Size = tuple[int, int]


class ExportedModel(NamedTuple):
    """A run's model, and what is to be exported of it."""

    config: Config
    parameters: Parameters
    graph: nnx.GraphDef
    described: AbstractParameters
    sizes: list[Size]
    names: tuple[str, ...]  # none, if none were named
    text: Float[np.ndarray, "t d2"] | None  # their embeddings
    fixed_list: bool  # whether the length of the class list is one for all


def export(
    checkpoint: str | Path | ModelFolder,
    out: str | Path,
    sizes: Sequence[Size] = (),
    names: Names | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Write the scores of a run's model as programs.

    Args:
        checkpoint: the folder of a run; one of another step than the newest comes from `store.folder.open_folder`.
        out: a new folder; it appears whole or not at all.
        sizes: heights and widths of the pictures, one program for each; default the square of inference.image_size.
            A program takes one size only, since windows, masks and resizing are planned from it before tracing.
        names: classes whose embeddings are put beside the programs; default none.
        overrides: as in `inference.load.load`.

    Raises:
        UserError: the folder holds no such model or the other exists, a size does not fit, or a name cannot be used.
    """
    model = prepare(checkpoint, out, sizes, names, overrides)
    config, sizes = model.config, model.sizes
    stored: dict[str, Any] = {
        name: _storable(value) for name, value in model.parameters.items() if not name.startswith(TEXT_TOWER)
    }
    texts = {name: leaf for name, leaf in model.described.items() if name.startswith(TEXT_TOWER)}
    length = len(model.names) if model.fixed_list else None
    program = scoring(config, model.graph, texts)

    def write(folder: Path) -> None:
        for size in sizes:
            lowered = lower(program, stored, size, text_width(config.model), length)
            (folder / f"{size_name(size)}.bin").write_bytes(lowered.serialize())
        np.savez(folder / WEIGHTS_FILE, **stored)
        if model.text is not None:
            np.save(folder / EMBEDDINGS_FILE, model.text)
        description = {
            "version": VERSION,
            "jax": jax.__version__,
            "platforms": PLATFORMS,
            "sizes": sizes,
            "text_width": text_width(config.model),
            "classes": length,
            "names": model.names,
            "files": {file.name: checksum_of(file) for file in sorted(folder.iterdir())},
        }
        said = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / EXPORT_FILE).write_text(said, encoding="utf-8", errors="replace")

    write_new_folder(expanded(out), write, EXPORT_FILE)


def prepare(
    checkpoint: str | Path | ModelFolder,
    out: str | Path,
    sizes: Sequence[Size],
    names: Names | None,
    overrides: Sequence[str],
) -> ExportedModel:
    """Read a run's model, and check what is asked; see `export`."""
    folder = open_folder(checkpoint)
    if way_of(folder) != "run":
        raise UserError(f"'{checkpoint}' holds converted weights, and only runs are exported; name a run's folder.")
    if expanded(out).exists():
        raise UserError(f"'{out}' exists; choose another --out.")
    check_writable(expanded(out))
    config = override_inference(folder.config, overrides)
    if config.model.linear.classes:
        raise UserError(f"'{checkpoint}' holds a linear head, which takes no text; only a whole model can be exported.")
    check_inference(config.inference, config.model.vision.patch_size)
    if config.inference.resize == "catseg":
        raise UserError("inference.resize 'catseg' cannot be exported; set another, such as 'square'.")
    if config.inference.best_classes:
        raise UserError(
            "an exported program scores every class it is given; add --config.inference.best_classes=0 to the command."
        )
    sizes = list(dict.fromkeys(sizes)) or [(config.inference.image_size,) * 2]
    _check_sizes(sizes, config.model.vision.patch_size)
    everywhere = dataclasses.replace(  # kernels are of one kind of device, a program for several
        config.model, attention="portable", late=dataclasses.replace(config.model.late, kernel="xla")
    )
    config, parameters = at_precision(dataclasses.replace(config, model=everywhere), folder.arrays())
    graph, described = build(config.model, ALL_FROZEN)
    listed, text = _embed(config, parameters, names)
    fixed_list = not can_chunk(config.model) or config.model.late.pad_classes > 0
    if fixed_list and not listed:
        raise UserError("this model's class list has a fixed length; say which classes with --classes.")
    return ExportedModel(config, parameters, graph, described, sizes, listed, text, fixed_list)


def scoring(config: Config, graph: nnx.GraphDef, texts: AbstractParameters) -> Callable[..., Array]:
    """The function that is exported; it scores what a `Segmenter` would.

    Args:
        config: of the run.
        graph: of its model.
        texts: the text tower's parameters, which are not used and so become zeros.
    """

    def score(
        parameters: dict[str, Array],
        images: UInt8[Array, "b height width 3"],
        text: Float[Array, "t d2"],
        class_mask: Bool[Array, " t"],
    ) -> Float[Array, "b t h w"]:
        absent = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in texts.items()}
        model = bind(graph, absent | {name: _restored(value) for name, value in parameters.items()})

        def score_one(image: UInt8[Array, "height width 3"]) -> Float[Array, "t h w"]:
            pixels = image[None].astype(jnp.float32) / 255
            return score_classes(model, pixels, text[None], class_mask[None], config.inference)[0]

        return jax.vmap(score_one)(images)  # traced for one picture, since their number is a symbol

    return score


def lower(
    program: Callable[..., Array], stored: dict[str, np.ndarray], size: Size, width: int, length: int | None
) -> jax.export.Exported:
    """Trace for pictures of a size; how many there are stays open, and of how many classes, unless `length` says it."""
    pictures, classes = jax.export.symbolic_shape("b, t")
    count = length or classes
    return jax.export.export(jax.jit(program), platforms=PLATFORMS)(
        {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in stored.items()},
        jax.ShapeDtypeStruct((pictures, *size, 3), jnp.uint8),
        jax.ShapeDtypeStruct((count, width), jnp.float32),
        jax.ShapeDtypeStruct((count,), jnp.bool_),
    )


def _storable(value: Array) -> np.ndarray:
    """NumPy files know no bfloat16: its bits are stored as uint16."""
    array = np.asarray(value)
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


def _restored(value: Array) -> Array:
    return jax.lax.bitcast_convert_type(value, jnp.bfloat16) if value.dtype == jnp.uint16 else value


def _embed(
    config: Config, parameters: Parameters, names: Names | None
) -> tuple[tuple[str, ...], Float[np.ndarray, "t d2"] | None]:
    if names is None:
        return (), None
    encode_text = text_encoder(config.model, functools.partial(bind_frozen, config.model))
    embed = ClassEmbeddings(encode_text, parameters, config.inference.templates, config.model)
    asked = embed.accept(ClassList.of(names))
    return tuple(one.shown for one in asked.classes), embed(asked.classes)


def _check_sizes(sizes: Sequence[Size], patch_size: int) -> None:
    for size in sizes:
        if min(size) < patch_size or any(side % patch_size for side in size):
            raise UserError(
                f"--sizes has {size_name(size)}; both sides have to be multiples of the {patch_size} pixels."
            )


def write_new_folder(out: Path, write: Callable[[Path], Any], last: str) -> None:
    """Make a new folder with what `write` puts into it, whole or not at all; `last` says that all the others are there.

    Raises:
        UserError: it cannot be written.
    """
    try:
        if is_remote(out):
            temporary = scratch()
            write(temporary)
            copy_tree(temporary, out, last)
        else:
            _write_here(out, write)
    except OSError as error:
        raise UserError(f"'{out}' cannot be written ({error.strerror}); choose another --out.") from None


def _write_here(out: Path, write: Callable[[Path], Any]) -> None:
    begun = f".{out.name}.export."
    for left in out.parent.glob(f"{glob.escape(begun)}*"):  # by processes that were killed
        process = left.name.removeprefix(begun)
        if process.isdecimal() and has_ended(int(process)):
            shutil.rmtree(left, ignore_errors=True)
    temporary = out.with_name(f"{begun}{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
