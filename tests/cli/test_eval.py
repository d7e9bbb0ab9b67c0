"""What `dinov3seg eval` prints."""

import math

from dinov3seg_jax.cli.eval import score
from dinov3seg_jax.config import Config


def test_a_mean_of_no_class_is_no_number(tmp_path, monkeypatch, capsys):
    found = {"miou": 41.236, "seen_miou": 41.236, "unseen_miou": math.nan, "pixel_accuracy": 80.0}
    monkeypatch.setattr("dinov3seg_jax.evaluation.evaluate.evaluate", lambda *_: found)
    score(Config(), tmp_path, zero_shot=False)
    assert capsys.readouterr().out.splitlines()[:4] == [
        "miou             41.24 %",
        "seen_miou        41.24 %",
        "unseen_miou          – (none of these classes occurs)",
        "pixel_accuracy   80.00 %",
    ]
