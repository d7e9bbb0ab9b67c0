"""What a step would cost: refused where the run itself would be."""

import json

import pytest

from dinov3seg_jax.config import Config, DataConfig, DatasetConfig
from dinov3seg_jax.costs import dry_run
from dinov3seg_jax.errors import UserError
from tests.tiny import MODEL


@pytest.mark.parametrize(("names", "part"), [(["Grass", "grass"], "grass"), (["a " * 100], "tokens")])
def test_names_that_scoring_refuses(tmp_path, monkeypatch, names, part):
    for folder in ("images", "masks"):
        (tmp_path / folder / "train").mkdir(parents=True)
        (tmp_path / folder / "train" / "a.png").touch()
    (tmp_path / "classes.json").write_text(json.dumps([{"id": i, "name": name} for i, name in enumerate(names)]))
    monkeypatch.setattr(dry_run, "describe_step", None)  # is not reached
    config = Config(model=MODEL, data=DataConfig(train=DatasetConfig(name="folder", root=str(tmp_path))))
    with pytest.raises(UserError, match=f"^in data set 'folder', .*{part}"):
        dry_run.dry_run(config)
