"""A trained model as ONNX files, which ONNX Runtime runs without JAX; jax2onnx writes them.

It writes some functions wrongly without a word (docs/export.md). So every file is run on the pictures of `probes`, and
none is left whose scores are not those of the model.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dinov3seg_jax.errors import UserError, one_line
from dinov3seg_jax.export.scorer import EMBEDDINGS_FILE, checksum_of, size_name
from dinov3seg_jax.export.writer import ExportedModel, Size, prepare, write_new_folder
from dinov3seg_jax.files import expanded
from dinov3seg_jax.inference.views.local_global import score_classes
from dinov3seg_jax.models.graph import bind
from dinov3seg_jax.store.folder import ModelFolder
from dinov3seg_jax.text.class_lists import Names

INPUTS, OUTPUT = ("images", "text"), "scores"
DESCRIPTION_FILE = "onnx.json"
CLOSE = 1e-4  # how far a score in [0, 1] may be from the model's
LARGE = 2**20  # bytes of an array that is kept beside the file, which holds 2 GB at most
ERRORS_ONLY = 3  # of ONNX Runtime's levels of logging
INSTALL = "install the extra 'onnx', then: pip install --no-deps jax2onnx==0.17.1"


def export_onnx(
    checkpoint: str | Path | ModelFolder,
    out: str | Path,
    sizes: Sequence[Size] = (),
    names: Names | None = None,
    overrides: Sequence[str] = (),
) -> float:
    """Write the scores of a run's model as ONNX files.

    Args:
        checkpoint: the folder of a run; one of another step than the newest comes from `store.folder.open_folder`.
        out: a new folder; it appears whole or not at all.
        sizes: heights and widths of the pictures, one file for each; default the square of inference.image_size.
        names: classes, whose embeddings are put beside the files. A file takes as many as these, of any names.
        overrides: as in `inference.load.load`.

    Returns:
        The largest difference between a score of a file and of the model, on the pictures of `probes`.

    Raises:
        UserError: as for `writer.export`; no names are given, a library is missing, jax2onnx cannot write the model,
            or a file does not agree with it.
    """
    if names is None:
        raise UserError("an ONNX file takes a fixed number of classes; say which with --classes.")
    convert, onnx, runtime = _import_libraries()
    model = prepare(checkpoint, out, sizes, names, overrides)
    text = model.text
    assert text is not None  # as there are names
    pairs = {size: [(image, rows) for image in probes(size) for rows in _texts(text)] for size in model.sizes}
    score = jax.jit(scoring(model))
    expected = {size: [np.asarray(score(*pair)) for pair in pairs[size]] for size in model.sizes}
    differences = []

    def write(folder: Path) -> None:
        for size in model.sizes:
            path = folder / f"{size_name(size)}.onnx"
            _save(onnx, _converted(convert, scoring(model), size, text.shape), model.names, path)
            differences.append(_difference(runtime, path, pairs[size], expected[size]))
        np.save(folder / EMBEDDINGS_FILE, text)
        description = {
            "names": model.names,
            "sizes": model.sizes,
            "largest_difference": max(differences),
            "files": {file.name: checksum_of(file) for file in sorted(folder.iterdir())},
        }
        said = json.dumps(description, indent=1, ensure_ascii=False)
        (folder / DESCRIPTION_FILE).write_text(said, encoding="utf-8", errors="replace")

    write_new_folder(expanded(out), write, DESCRIPTION_FILE)
    return max(differences)


def scoring(model: ExportedModel) -> Callable[..., Array]:
    """The function that is exported; it scores what a `Segmenter` would."""

    def score(images: UInt8[Array, "1 height width 3"], text: Float[Array, "t d2"]) -> Float[Array, "1 t h w"]:
        pixels, mask = images.astype(jnp.float32) / 255, jnp.ones((1, len(text)), bool)
        bound = bind(model.graph, model.parameters)
        return score_classes(bound, pixels, text[None], mask, model.config.inference)

    return score


def probes(size: Size) -> list[UInt8[np.ndarray, "1 height width 3"]]:
    """Pictures that a file is checked on: noise, plain regions, and a gradient in each colour."""
    height, width = size
    drawn = np.random.default_rng(0)
    noise = drawn.integers(0, 256, (height, width, 3), np.uint8)
    regions = drawn.integers(0, 256, (4, 4, 3), np.uint8).repeat(-(-height // 4), 0).repeat(-(-width // 4), 1)
    down, across = np.mgrid[0:height, 0:width] * 255 // max(size)
    gradient = np.stack([down, across, 255 - down], axis=-1).astype(np.uint8)
    return [noise[None], regions[None, :height, :width], gradient[None]]


def _import_libraries() -> tuple[Callable[..., Any], Any, Any]:
    for name in ("jax2onnx", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a traceback for each library that is not installed
    try:
        import onnx
        import onnxruntime
        from jax2onnx import to_onnx
    except ImportError as error:
        raise UserError(f"ONNX files are written with jax2onnx, which is not all there ({error}); {INSTALL}") from error
    return to_onnx, onnx, onnxruntime


def _converted(convert: Callable[..., Any], score: Callable[..., Array], size: Size, text: tuple[int, ...]) -> Any:
    jax.clear_caches()  # jax2onnx puts functions of its own in the place of JAX's, and each may be kept traced
    shapes = [jax.ShapeDtypeStruct((1, *size, 3), jnp.uint8), jax.ShapeDtypeStruct(text, jnp.float32)]
    try:
        return convert(score, shapes, model_name="dinov3seg", input_names=INPUTS, output_names=[OUTPUT])
    except Exception as error:  # of any of its plugins
        raise UserError(
            f"jax2onnx cannot write this model at {size_name(size)} ({type(error).__name__}: {one_line(error, 200)}); "
            "export it with --format jax"
        ) from error
    finally:
        jax.clear_caches()


def _save(onnx: Any, written: Any, names: Sequence[str], path: Path) -> None:
    onnx.helper.set_model_props(written, {"names": json.dumps(names)})
    beside = f"{path.name}.data"
    onnx.save_model(
        written, path, save_as_external_data=True, all_tensors_to_one_file=True, location=beside, size_threshold=LARGE
    )


def _texts(text: Float[np.ndarray, "t d2"]) -> list[Float[np.ndarray, "t d2"]]:
    """The given embeddings, and random ones."""
    return [text, np.random.default_rng(1).standard_normal(text.shape).astype(np.float32)]


def _difference(
    runtime: Any, path: Path, pairs: Sequence[tuple[np.ndarray, np.ndarray]], expected: Sequence[np.ndarray]
) -> float:
    """The largest difference of a file's scores from what is expected.

    Raises:
        UserError: it is too large.
    """
    options = runtime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found = [session.run([OUTPUT], dict(zip(INPUTS, pair, strict=True)))[0] for pair in pairs]
    largest = float(np.abs(np.array(found) - np.array(expected)).max())
    if not largest <= CLOSE:
        raise UserError(
            f"the ONNX file for pictures of {path.stem} is wrong: a score is {largest:.2g} from the model's, and "
            f"{CLOSE:g} is allowed; export it with --format jax"
        )
    return largest
