"""Scores and calibrations of a model in a bucket: that they cannot be written there is said before work starts."""

import pytest

from dinov3seg_jax.cli import calibrate
from dinov3seg_jax.cli import eval as scoring
from dinov3seg_jax.config import Config
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.places import place
from dinov3seg_jax.store.run import write_config


@pytest.mark.parametrize("main", [calibrate.main, scoring.main])
def test_no_right_to_write(main, s3, s3_faults):
    write_config(place(f"{s3}/run"), Config())
    s3_faults.answer(403, writes=True)
    with pytest.raises(UserError, match=f"{s3}/run cannot be written .*; use credentials that may write and delete"):
        main(["--config", "quickstart", "--checkpoint", f"{s3}/run"])
