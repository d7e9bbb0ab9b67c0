"""`dinov3seg plan`: what it is asked, and what it answers to the shell."""

import pytest

from dinov3seg_jax.cli.parsing import amount_of_memory
from dinov3seg_jax.cli.plan import main
from dinov3seg_jax.costs import dry_run, prediction
from dinov3seg_jax.errors import UserError


@pytest.mark.parametrize("fits", [True, False])
def test_the_status_says_whether_the_step_fits(monkeypatch, fits):
    asked = []
    monkeypatch.setattr(dry_run, "dry_run", lambda config, *machine: asked.append(machine) or fits)
    assert main(["--config", "coco_stuff", "--devices", "8", "--memory", "80GB"]) == (0 if fits else 1)
    assert asked == [("", 8, 80 * 10**9)]


def test_a_slice_has_its_own_number_of_devices():
    with pytest.raises(UserError, match="^--topology and --devices both say how many devices there are; give one of"):
        main(["--config", "coco_stuff", "--topology", "v5e:4x4", "--devices", "8"])


@pytest.mark.parametrize("size", ["much", "4", "1e999GB", "0GB", "nan"])
def test_an_amount_that_is_none(size):
    with pytest.raises(UserError, match=f"^--memory is '{size}', which is "):
        amount_of_memory(size)


def test_amounts_of_memory():
    assert amount_of_memory("24GB") == 24 * 10**9
    assert amount_of_memory("24 GiB") == 24 * 2**30


def test_predictions_are_planned_with_what_was_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(prediction, "plan_prediction", lambda config, *rest: asked.append(rest))
    base = ["--config", "pod", "--predict", "--topology", "v5e:2x4"]
    for more in ([], ["--names", "5, 7"], ["--benchmark", "ade20k_847", "--batch_size", "4"]):
        assert main([*base, *more]) == 0
    assert asked == [
        ((20, 150, 847), "v5e:2x4", 1, ""),
        ((5, 7), "v5e:2x4", 1, ""),
        ((20, 150, 847), "v5e:2x4", 4, "ade20k_847"),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--names", "20"], "^--names is for predictions; add --predict"),
        (["--benchmark", "ade20k_847"], "^--benchmark is for predictions; add --predict"),
        (["--predict", "--devices", "8"], "^--devices is for a training step; leave it out"),
        (["--predict", "--names", "20", "--benchmark", "voc_20"], "^--names and --benchmark both say"),
        (["--predict", "--benchmark", "ade20k_848"], r"^--benchmark ade20k_848 is not known \(did you mean"),
        (["--predict", "--benchmark", "x"], "^--benchmark x is not known; there are coco_stuff_171, "),
        (["--predict", "--names", "20,many"], "^--names 20,many: 'many' is no whole number; give numbers of names"),
        (["--predict", "--names", "0"], "^--names 0: 0 is less than 1; give numbers"),
    ],
)
def test_options_that_do_not_fit_together(options, message):
    with pytest.raises(UserError, match=message):
        main(["--config", "pod", *options])
