"""The folder of a run that is none, or damaged, is one sentence; what damages a step is in tests/training."""

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.run import CONFIG_FILE, STEPS_FOLDER, RunFolder


@pytest.mark.parametrize(
    "content",
    [b"", b'{"seed": 3', b"\xff\xfe\x00", b"PK\x03\x04", pytest.param(b"[" * 100_000, id="deep")],
)
def test_a_config_that_is_no_json(tmp_path, content):
    (tmp_path / CONFIG_FILE).write_bytes(content)
    with pytest.raises(UserError, match=rf"{tmp_path}/{CONFIG_FILE} is damaged \(.*\); restore it or train again"):
        RunFolder(tmp_path).config  # noqa: B018


@pytest.mark.parametrize("content", ["[]", "null", "3", '"seed"'])
def test_a_config_that_is_another_json_file(tmp_path, content):
    (tmp_path / CONFIG_FILE).write_text(content)
    with pytest.raises(UserError, match=rf"{CONFIG_FILE} is damaged \(it holds no options\); restore it"):
        RunFolder(tmp_path).config  # noqa: B018


def test_steps_of_which_none_is_whole(tmp_path):
    for step in (2, 10):
        (tmp_path / STEPS_FOLDER / str(step)).mkdir(parents=True)
    message = (
        r"no checkpoint in .* is whole \(step 10: it has no checksums.json, step 2: .*\); put one back from a copy"
    )
    with pytest.raises(UserError, match=message):
        RunFolder(tmp_path).progress()
