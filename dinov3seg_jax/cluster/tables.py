"""Results of many pictures in one Parquet file, which says of itself what it was made from."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinov3seg_jax.files import write_whole
from dinov3seg_jax.formats.libraries import needed

KEY = b"dinov3seg"  # of the metadata: JSON of `Made`


class Made(NamedTuple):
    """What a file of results was made from, and how that went."""

    state: str  # of the pictures, as they were
    failed: int  # pictures


def write_table(path: Path, rows: Sequence[dict[str, Any]], names: Sequence[str], made: Made) -> None:
    """Write results.

    Args:
        path: of the file.
        rows: of pictures: `path`, `width`, `height`, `labels` (a file's bytes: PNG, or GeoTIFF of a picture with a
            place), `areas` (pixels of each class), `confidences` (their means; null of absent classes), `error`.
        names: of the classes.
        made: see there.

    Raises:
        OSError: it cannot be written.
    """
    arrow, parquet = _arrow()
    schema = arrow.schema(
        {
            "path": arrow.string(),
            "width": arrow.int32(),
            "height": arrow.int32(),
            "labels": arrow.binary(),
            "areas": arrow.list_(arrow.int64()),
            "confidences": arrow.list_(arrow.float64()),
            "error": arrow.string(),
        },
        {KEY: json.dumps(made._asdict()), b"classes": json.dumps(list(names))},
    )
    content = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(rows), schema), content, compression="zstd")
    write_whole(path, content.getvalue())


def made_from(path: Path) -> Made | None:
    """What a file says of itself; None where there is none of this program's, whole."""
    arrow, parquet = _arrow()
    try:
        with path.open("rb") as file:
            return Made(**json.loads(parquet.read_metadata(file).metadata[KEY]))
    except (OSError, ValueError, TypeError, KeyError, arrow.ArrowException):
        return None


def _arrow() -> tuple[Any, Any]:
    arrow, parquet = (needed(name, "cluster", "--results parquet") for name in ("pyarrow", "pyarrow.parquet"))
    return arrow, parquet
