"""Examples from array_record files, as `tfds_builder.py` writes them; TFDS reads them without TensorFlow.

With `tfds_builder.py` the only module that imports tensorflow_datasets, and only when it is used.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from dinov3seg_jax.data.folder import beside, refuse_other_header
from dinov3seg_jax.data.images import read_turned
from dinov3seg_jax.data.masks import Mask
from dinov3seg_jax.data.prepared import Manifest, parse_manifest
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.places import local_copy

INFO = "dataset_info.json"


class ArrayRecords:
    """A random-access source of images with labels, in the order of the prepared folder they come from."""

    def __init__(self, records: Any, manifest: Manifest, folder: Path) -> None:
        """Take what `as_data_source` returns, with pictures still encoded."""
        self.reader = manifest.mask_reader()
        self._records, self._folder = records, folder

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        """Decode one pair; as `ImageFolder` does."""
        record, title = self._record(index)
        image, turned = read_turned(record["image"], title)
        mask = self.reader.open(io.BytesIO(record["label"]), title)
        label = beside(image.shape[:2], turned, title, mask, self.reader.label(mask))
        return {"image": image, "label": label, "name": record["name"].decode()}

    def mask(self, index: int) -> Mask:
        """As `ImageFolder` does."""
        record, title = self._record(index)
        mask = self.reader.open(io.BytesIO(record["label"]), title)
        refuse_other_header(record["image"], title, mask)
        return mask

    def _record(self, index: int) -> tuple[dict[str, Any], str]:
        """A record, and what errors call it."""
        if not 0 <= index < len(self._records):
            raise IndexError(f"image {index} of {len(self._records)}")
        record = self._records[index]
        if any(record[part] is None for part in ("image", "label", "name")):  # what array_record says of a cut-off file
            raise UserError(
                f"example {index} of {self._folder} cannot be read, as of a file that was cut off; copy the folder "
                "again, or write it anew."
            )
        return record, f"'{record['name'].decode()}' of {self._folder}"


def find_records(root: Path) -> Path | None:
    """The folder of a data set that TFDS wrote: the root itself, or the newest version below it."""
    if (root / INFO).is_file():
        return root
    versions = sorted(path for path in root.glob(f"*/{INFO}") if not path.parent.name.startswith("incomplete"))
    return versions[-1].parent if versions else None


def open_records(folder: Path, split: str) -> tuple[Manifest, ArrayRecords]:
    """Open one split.

    Raises:
        UserError: TFDS is missing, the folder was not written by `tfds_builder.py`, or files are missing from it.
    """
    tfds = import_tfds()
    folder = local_copy(folder)  # array_record finds no example on s3://, and says nothing
    builder = tfds.builder_from_directory(folder)
    manifest = parse_manifest(dict(builder.info.metadata or {}), folder / "metadata.json")
    name = manifest.split(split, folder)
    missing = [path for path in map(Path, builder.info.splits[name].filepaths) if not path.is_file()]
    if missing:
        raise UserError(f"{missing[0]} does not exist; copy the folder again, or write it anew.")
    skip = tfds.decode.SkipDecoding()
    records = builder.as_data_source(name, decoders={"image": skip, "label": skip})
    if len(records) != manifest.files[name]:
        raise UserError(
            f"{folder} holds {len(records):,} examples of '{name}', not {manifest.files[name]:,}; write it anew."
        )
    return manifest, ArrayRecords(records, manifest, folder)


def import_tfds() -> Any:
    """The module `tensorflow_datasets`.

    Raises:
        UserError: It is not installed.
    """
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError("array_record files need tensorflow_datasets; install it, or use a prepared folder.") from error
    return tensorflow_datasets
