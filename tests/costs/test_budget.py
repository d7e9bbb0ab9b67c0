"""Which options are tried to make a step fit, and when it does."""

import pytest

from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.costs import dry_run
from dinov3seg_jax.costs.budget import attempts
from dinov3seg_jax.costs.step_memory import StepMemory, kept_of_a_crop, memory_of, mesh_of
from dinov3seg_jax.errors import UserError

NAMES = 171, 16


def options(config, devices=1):
    """What is tried, the last option of each attempt."""
    tried = attempts(config, devices, NAMES[0], lambda more: StepMemory({}, {}))
    return [attempt.options[-1] for attempt in tried]


def test_what_is_tried():
    config = load_config("coco_stuff")
    assert options(config) == [
        "train.frozen_dtype=bfloat16",
        "model.early.remat=True",
        "model.decoder.remat=True",
        "train.accumulate=2",
        "train.accumulate=4",
        "data.classes_per_image=96",
        "data.classes_per_image=48",
        "data.classes_per_image=24",
    ]


def test_a_part_has_a_crop_for_every_device():
    config = load_config("coco_stuff", ["train.batch_size=24", "data.classes_per_image=40"])
    assert options(config, 8)[3:] == ["train.accumulate=3", "data.classes_per_image=24"]


def test_each_attempt_is_measured_with_all_of_its_options():
    seen = []
    list(attempts(load_config("coco_stuff"), 1, NAMES[0], lambda more: seen.append(more) or StepMemory({}, {})))
    assert [more.model.early.remat for more in seen[:3]] == [False, True, True]
    assert {more.model.dtype for more in seen} == {"bfloat16"}
    assert [more.train.accumulate for more in seen[2:6]] == [1, 2, 4, 4]
    assert seen[-1].data.classes_per_image == 24


def say(monkeypatch, capsys, needs, memory):
    """What is printed for a step whose attempts need so many GB, one after the other, and what is returned."""
    left = iter(needs[1:])
    monkeypatch.setattr(dry_run, "memory_of", lambda *_: StepMemory({}, {"decoder": int(next(left) * 1e9)}))
    config = load_config("coco_stuff")
    needed = StepMemory({}, {"decoder": int(needs[0] * 1e9)})
    fits = dry_run.say_whether_it_fits(config, mesh_of(config, 1), NAMES, needed, int(memory * 1e9))
    return fits, capsys.readouterr().out.splitlines()


def test_a_step_that_fits(monkeypatch, capsys):
    fits = "it fits 24.0 GB, of which 90% may be planned for"
    assert say(monkeypatch, capsys, [17.9], 24) == (True, [fits])
    hint = "JAX takes 75% of a GPU by itself; start the run with XLA_PYTHON_CLIENT_MEM_FRACTION=0.9"
    assert say(monkeypatch, capsys, [21.5], 24) == (True, [fits, hint])


def test_a_tenth_stays_free_and_the_options_that_help_are_named(monkeypatch, capsys):
    fits, lines = say(monkeypatch, capsys, [70, 22, 20], 24)
    words = "--config.model.dtype=bfloat16 --config.train.frozen_dtype=bfloat16"
    assert not fits
    assert lines[0] == "it does not fit 24.0 GB, of which 90% may be planned for; with more options it needs"
    assert lines[1] == f"     22.00 GB  {words}"
    assert lines[-1] == f"it fits with {words} --config.model.early.remat=True"


def test_a_step_that_nothing_makes_fit(monkeypatch, capsys):
    fits, lines = say(monkeypatch, capsys, [70] * 10, 24)
    assert not fits
    assert lines[-1] == "none of these is enough: give it more devices, or a smaller data.crop_size or model"


@pytest.mark.slow
def test_what_the_backward_pass_keeps_of_a_crop():
    plain = kept_of_a_crop(load_config("quickstart"), 46)
    again = kept_of_a_crop(load_config("quickstart", ["model.early.remat=True"]), 46)
    assert again["early refinement"] < plain["early refinement"] / 5
    unchanged = ("late refinement", "decoder", "loss", "guidance projections")
    assert [again[part] for part in unchanged] == [plain[part] for part in unchanged]
    assert min(plain[part] for part in unchanged) > 0


@pytest.mark.slow
def test_the_papers_step_keeps_little_of_a_crop():
    saving = ["model.dtype=bfloat16", "model.early.remat=True", "model.late.remat=True", "model.decoder.remat=True"]
    assert kept_of_a_crop(load_config("coco_stuff", saving), NAMES[0]).total() < 1.6e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpu", "devices", "memory"), [("24gb", 1, 24), ("40gb", 1, 40), ("80gb", 1, 80), ("h100x8", 8, 80)]
)
def test_the_papers_step_fits_the_gpus_that_its_recipes_name(gpu, devices, memory):
    config = load_config(f"configs/coco_stuff.py:{gpu}")
    assert memory_of(config, devices, NAMES).total <= 0.9 * memory * 1e9
    assert config.train.batch_size * config.train.steps == 320_000


def test_a_gpu_that_the_recipe_does_not_know():
    with pytest.raises(UserError, match="knows 24gb, 40gb, 80gb, h100x8 and not '12gb'; name one of them, or none"):
        load_config("configs/coco_stuff.py:12gb")


@pytest.mark.parametrize(
    ("overrides", "devices", "message"),
    [
        ([], 8, "train.batch_size 4 cannot be shared out over 8 devices; set --config.train.batch_size=8, or let"),
        (["model_parallel=3"], 8, "2 x 3 devices were asked for and there are 8"),
    ],
)
def test_a_run_that_so_many_devices_would_refuse(overrides, devices, message):
    with pytest.raises(UserError, match=message):
        dry_run.dry_run(load_config("coco_stuff", overrides), devices=devices, memory=10**9)
