"""Windows, global view and blending against CAT-Seg's inference."""

from pathlib import Path

import jax
import numpy as np
import pytest

from dinov3seg_jax.inference.views.catseg import cut_views
from dinov3seg_jax.inference.views.local_global import blend_logits
from dinov3seg_jax.inference.views.windows import plan_windows
from dinov3seg_jax.models.functions import resize_linear
from tests.parity.fixtures import fixtures
from tests.parity.official import arrays, described

TOLERANCE = 3e-5


@pytest.fixture(params=fixtures("catseg_sliding_window"), ids=lambda path: path.stem)
def values(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    path: Path = request.param
    return arrays(path)


def assert_close(ours: np.ndarray, official: np.ndarray, case: str) -> None:
    assert ours.shape == official.shape
    assert np.abs(ours - official).max() <= TOLERANCE * np.abs(official).max(), case


def test_views(values: dict[str, np.ndarray]) -> None:
    for case, config in described(values, "config").items():
        kernel, size = config["kernel"], config["out_res"]
        assert config["stride"] == int(kernel * (1 - config["overlap"]))
        views = cut_views(np.moveaxis(values[f"{case}/in/image"], 0, -1), size[0], kernel, config["stride"])
        views = np.asarray(resize_linear(views, *config["model_input_size"]))
        normalised = (views - np.array(config["pixel_mean"])) / np.array(config["pixel_std"])
        every = config["model_input_stored_stride"]
        official = values[f"{case}/mid/model_input_strided"]
        assert_close(np.moveaxis(normalised, -1, 1)[:, :, ::every, ::every], official, case)


def test_blended_probabilities(values: dict[str, np.ndarray]) -> None:
    for case, config in described(values, "config").items():
        kernel, size = config["kernel"], tuple(config["out_res"])
        corners = plan_windows(*size, kernel, config["stride"])
        logits = values[f"{case}/in/window_logits"]
        assert len(logits) == len(corners) + 1 == config["n_windows_plus_global"]

        def blend(logits: jax.Array, corners=corners, kernel=kernel, size=size, output=config["output_hw"]):
            square = kernel, kernel
            blended = blend_logits(logits[None, :-1], logits[-1:], corners, square, square, size)
            return resize_linear(blended[0][..., None], *output)[..., 0]

        assert_close(np.asarray(jax.jit(blend)(logits)), values[f"{case}/out/sem_seg"], case)
