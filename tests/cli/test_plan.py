"""`dinov3seg plan`: what it is asked, and what it answers to the shell."""

import pytest

from dinov3seg_jax.cli.parsing import amount_of_memory
from dinov3seg_jax.cli.plan import main
from dinov3seg_jax.costs import dry_run
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
