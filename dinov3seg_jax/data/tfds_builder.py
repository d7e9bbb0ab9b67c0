"""Writes a prepared folder as array_record files, which are few and quick to read from far away.

    python -m dinov3seg_jax.data.tfds_builder NAME --source PREPARED --out DIR

They are an ordinary TFDS data set, `DIR/NAME/1.0.0`: pictures and labels as encoded in the prepared folder, in its
order. `tfds.builder_from_directory(...).as_data_source("eval")` opens them anywhere, without TensorFlow.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinov3seg_jax.config import ModelConfig
from dinov3seg_jax.data.datasets import check_classes
from dinov3seg_jax.data.prepared import MANIFEST, Manifest, read_manifest
from dinov3seg_jax.data.tfds_source import import_tfds
from dinov3seg_jax.errors import UserError, run_command
from dinov3seg_jax.files import expanded
from dinov3seg_jax.places import is_remote
from dinov3seg_jax.text.prompts import PAPER

VERSION = "1.0.0"


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="the data set that the folder was prepared as")
    parser.add_argument("--source", type=expanded, required=True, help="a prepared folder")
    parser.add_argument("--out", type=expanded, required=True, help="where NAME/1.0.0 is made")
    options = parser.parse_args()
    folder = write_records(options.name, options.source, options.out)
    print(f"{folder} is complete; read it with --config.data.eval.name={options.name} and root={options.out}")


def write_records(name: str, source: Path, out: Path) -> Path:
    """Write every split of a prepared folder, and return the new folder.

    An interrupted run leaves only a folder `incomplete.*`, which nothing reads; a complete one is left as it is.

    Raises:
        UserError: The prepared folder is not complete or holds another data set, or classes that no model could be
            asked for; `out` holds another version of it, or the files cannot be written.
    """
    if is_remote(out):
        raise UserError(f"records are written to a folder of this machine, not to {out}; copy them there afterwards.")
    manifest = read_manifest(source)
    if manifest.dataset != name:
        raise UserError(f"{source} is a prepared '{manifest.dataset}', not '{name}'; name the one it is.")
    check_classes(manifest.classes, str(source / MANIFEST), PAPER, ModelConfig())
    builder = builder_of(source, manifest, out)
    folder = Path(builder.data_dir)
    if folder.exists():
        if builder.info.metadata != _manifest_values(source):
            raise UserError(f"{folder} was written from another folder than {source}; delete it or choose another out.")
        return folder
    try:
        builder.download_and_prepare()
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); make room there and start again.") from error
    return folder


def builder_of(source: Path, manifest: Manifest, out: Path) -> Any:
    """A TFDS builder for one prepared folder, called after its data set."""
    tfds = import_tfds()
    width = np.uint8 if manifest.bits == 8 else np.uint16

    def info(self: Any) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{manifest.dataset}: images, and labels that are class indices.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1), dtype=width, encoding_format="png"),
                    "name": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(_manifest_values(source)),
            disable_shuffling=True,
        )

    def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        pairs = manifest.images(source, split)
        for index in range(len(pairs)):
            name, image, label = pairs.files(index)
            yield index, {"image": image.read_bytes(), "label": label.read_bytes(), "name": name}

    members = {
        "name": manifest.dataset,
        "VERSION": tfds.core.Version(VERSION),
        "_info": info,
        "_split_generators": lambda self, _: {split: examples(split) for split in manifest.files},
        "_generate_examples": lambda self: None,  # TFDS demands one
    }
    with tfds.core.registered.skip_registration():
        builder = type("PreparedFolder", (tfds.core.GeneratorBasedBuilder,), members)
    return builder(data_dir=out, file_format="array_record")


def _manifest_values(source: Path) -> dict[str, Any]:
    return json.loads((source / MANIFEST).read_text(encoding="utf-8"))


if __name__ == "__main__":
    run_command(main)
