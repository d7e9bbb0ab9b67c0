"""Original labels as class indices, exactly; "ignored" is -1 here and the largest value there."""

import numpy as np
import pytest

from dinov3seg_jax.data.label_maps import ade_values, to_classes
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays

SAME_INPUT = {"voc_20b": "voc_20"}
NOTHING_IGNORED = "pc_459"  # 459, which never occurs


@pytest.mark.parametrize("path", fixtures("label_remaps"), ids=lambda path: path.stem)
def test_label_maps(path):
    values = arrays(path)
    benchmarks = [key.removesuffix("/out") for key in values if key.endswith("/out")]
    assert benchmarks
    for benchmark in benchmarks:
        folder = SAME_INPUT.get(benchmark, benchmark)
        colours = values.get(f"{folder}/in_rgb")
        original = values[f"{folder}/in"] if colours is None else ade_values(colours)
        expected = values[f"{benchmark}/out"]
        ignored = (expected == np.iinfo(expected.dtype).max) & (benchmark != NOTHING_IGNORED)
        np.testing.assert_array_equal(
            to_classes(original, benchmark), np.where(ignored, -1, expected.astype(np.int32)), err_msg=benchmark
        )
