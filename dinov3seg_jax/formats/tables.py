"""Areas of a folder's pictures as a table: a row for each picture and class, also where the class is absent."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from dinov3seg_jax.formats.answer import Answer
from dinov3seg_jax.formats.earth import pixel_square_metres
from dinov3seg_jax.formats.libraries import needed
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.formats.parts import Classes, Lines, dumped

COLUMNS = ("picture", "class_index", "class", "pixels", "fraction", "mean_confidence", "area_m2")
ROWS = 2**16  # of a group in a parquet file
BLOCK = 2**22  # pixels that are counted together


def rows(answer: Answer) -> list[dict[str, Any]]:
    """The rows of a picture. Fractions are of the pixels with data, a mean is None without pixels, and so is an area
    where the size of a pixel on the ground is not known."""
    count = len(answer.names)
    pixels, sums = np.zeros(count, np.int64), np.zeros(count)
    step = max(BLOCK // answer.width, 1)
    for top in range(0, answer.height, step):
        labels = np.asarray(answer.labels[top : top + step])
        labelled = labels >= 0
        pixels += np.bincount(labels[labelled], minlength=count)
        confidence = np.asarray(answer.confidence[top : top + step])[labelled]
        sums += np.bincount(labels[labelled], confidence, minlength=count)
    metres, valid = pixel_square_metres(answer.place), max(int(pixels.sum()), 1)
    return [
        {
            "picture": answer.file,
            "class_index": index,
            "class": name,
            "pixels": number,
            "fraction": number / valid,
            "mean_confidence": sums[index] / number if number else None,
            "area_m2": None if metres is None else number * metres,
        }
        for index, (name, number) in enumerate(zip(answer.names, pixels.tolist(), strict=True))
    ]


def part(answer: Answer, outputs: Outputs) -> Iterator[bytes]:
    """The rows, each on a line."""
    yield from map(dumped, rows(answer))


def join_csv(parts: Iterable[Lines], classes: Classes) -> Iterator[bytes]:
    """A table with commas; texts with commas, quotes or line ends are quoted."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for lines in parts:
        writer.writerows(map(json.loads, lines))
        yield _taken(text)
    yield _taken(text)


def _taken(text: io.StringIO) -> bytes:
    content = text.getvalue().encode(errors="replace")
    text.seek(0)
    text.truncate()
    return content


def join_parquet(parts: Iterable[Lines], classes: Classes) -> Iterator[bytes]:
    """The same as Parquet, in groups of rows.

    Raises:
        UserError: pyarrow is not installed.
    """
    arrow, parquet = (needed(name, "tables", "the format parquet") for name in ("pyarrow", "pyarrow.parquet"))
    kinds = (arrow.string(), arrow.int32(), arrow.string(), arrow.int64(), *[arrow.float64()] * 3)
    schema = arrow.schema(list(zip(COLUMNS, kinds, strict=True)))
    content = io.BytesIO()
    found = map(json.loads, itertools.chain.from_iterable(parts))
    with parquet.ParquetWriter(content, schema) as writer:
        while group := list(itertools.islice(found, ROWS)):
            writer.write_table(arrow.Table.from_pylist(group, schema))
    yield content.getvalue()


def frame(answer: Answer) -> Any:
    """The rows of a picture as pandas' DataFrame.

    Raises:
        UserError: pandas is not installed.
    """
    pandas = needed("pandas", "tables", "a data frame")
    return pandas.DataFrame(rows(answer), columns=list(COLUMNS))
