"""TIPSv2 B/14 and L/14 at full size and with random weights, beside `transformers`' Tipsv2Model, by way of its file."""

import numpy as np
import pytest

from dinov3seg_jax.convert.run import convert
from dinov3seg_jax.models.graph import any_values, bind, describe
from dinov3seg_jax.models.towers import TwoTowers
from dinov3seg_jax.store.converted import ConvertedFolder
from tests.parity.official import channels_last, run

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
SIZES = {"tipsv2_b14": (768, 12, 12), "tipsv2_l14": (1024, 24, 16)}  # width, depth of the vision tower, heads


def their_model(width: int, depth: int, heads: int):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = {"hidden_size": width, "num_attention_heads": heads}
    config = transformers.Tipsv2Config(
        vision_config=sizes | {"num_hidden_layers": depth},
        text_config=sizes | {"num_hidden_layers": 12, "intermediate_size": 4 * width},
    )
    torch.manual_seed(0)
    model = transformers.Tipsv2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that no bias is 0 and no scale is 1
            parameter += 0.02 * torch.randn_like(parameter)
    return torch, model


@pytest.mark.parametrize("name", SIZES)
def test_the_same_features(name, tmp_path, compare):
    torch, model = their_model(*SIZES[name])
    model.save_pretrained(tmp_path / "saved")
    random = np.random.default_rng(0)
    images = random.random((1, 3, 448, 448), np.float32)
    ids = np.zeros((3, 64), np.int64)
    for row, length in zip(ids, (3, 20, 64), strict=True):
        row[:length] = random.integers(4, 32000, length)
    with torch.no_grad():
        seen = model.vision_model(pixel_values=torch.from_numpy(images)).last_hidden_state.numpy()
        mask = torch.from_numpy(ids != 0)
        read = model.text_model(input_ids=torch.from_numpy(ids), attention_mask=mask).pooler_output.numpy()
    del model

    manifest = convert("tips", [tmp_path / "saved" / "model.safetensors"], tmp_path / "ours")
    assert manifest.name == name
    folder = ConvertedFolder(tmp_path / "ours")
    graph, _ = describe(lambda: TwoTowers(folder.config.model, rngs=any_values()))
    towers = bind(graph, folder.arrays())
    features = run(towers, lambda towers, images: towers.vision(images), channels_last(images))
    text = run(towers, lambda towers, ids: towers.text(ids), ids.astype(np.int32))
    compare("class token", features.cls, seen[:, 0], TOLERANCE, relative=True)
    patches = np.asarray(features.backbone_patches)
    compare("patches", patches.reshape(1, -1, patches.shape[-1]), seen[:, 2:], TOLERANCE, relative=True)
    compare("text", text, read, TOLERANCE, relative=True)
