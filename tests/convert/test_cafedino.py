"""CAFe-DINO's whole file is told by its keys and shapes, and comes out as it went in."""

import pytest

from dinov3seg_jax.config import CafeDinoConfig
from dinov3seg_jax.convert.run import prepare
from dinov3seg_jax.text.prompts import load_templates
from tests.convert.files import LAYOUTS
from tests.convert.test_recognise import described, prefixed, sentence


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "model._orig_mod."])
def test_the_released_layout(prefix):
    recognised, plan = prepare(described(prefixed(prefix, LAYOUTS["cafedino"]), left_out=("optimizer",)), "cafedino")
    assert recognised.name == "cafedino"
    assert CafeDinoConfig(**recognised.model["cafedino"]) == CafeDinoConfig(layers=6)
    assert recognised.model["vision"]["depth"] == 24
    assert recognised.model["early"]["heads"] == 4
    assert recognised.config["inference"]["templates"] == load_templates("cafedino_10")
    assert any("licence" in note for note in recognised.notes)
    assert any("optimizer" in note for note in recognised.notes)
    assert sum(key.endswith("num_batches_tracked") for key in plan.dropped) == 2
    assert plan.shapes["reduction/norm2/var"] == (16,)


def test_the_width_is_read_off():
    narrow = {
        key: [32 if n == 64 else n for n in shape] if key.startswith("corr_embed") else shape
        for key, shape in LAYOUTS["cafedino"].items()
    }
    assert "wrong shapes" in sentence(narrow, "cafedino")  # as all other parts are of another width


def test_a_window_that_is_not_square_is_refused():
    key = "aggregator.0.spatial_agg.swin1.attn.relative_position_bias_table"
    said = sentence(LAYOUTS["cafedino"] | {key: [117, 8]}, "cafedino")
    assert "117 relative biases" in said


def test_it_is_no_dinotxt():
    assert "holds CAFe-DINO" in sentence(LAYOUTS["cafedino"], "dinotxt")
