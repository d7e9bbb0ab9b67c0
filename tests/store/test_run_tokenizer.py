import dataclasses

from dinov3seg_jax.config import Config, ModelConfig
from dinov3seg_jax.store.run import RunFolder, read_config, write_config


def test_a_run_keeps_its_tokenizer(tmp_path):
    given = tmp_path / "given.model"
    given.write_bytes(b"pieces")
    config = Config(model=ModelConfig(towers="tips", tokenizer=str(given)))
    write_config(tmp_path / "run", config)
    given.unlink()
    copy = tmp_path / "run" / "tokenizer.model"
    assert copy.read_bytes() == b"pieces"
    model = dataclasses.replace(config.model, tokenizer=str(copy))
    assert RunFolder(tmp_path / "run").config == dataclasses.replace(config, model=model)
    assert read_config(tmp_path / "run") == config  # what going on compares with
