"""Estimates for slices of TPUs that are not there."""

import dataclasses
import importlib.util
from types import SimpleNamespace

import jax
import pytest

from dinov3seg_jax.config import Config, EarlyRefinementConfig
from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.costs import topology
from dinov3seg_jax.costs.dry_run import dry_run
from dinov3seg_jax.costs.hlo import Exchange, Traffic
from dinov3seg_jax.costs.roofline import MATRIX, MEMORY, Bound
from dinov3seg_jax.costs.step_memory import mesh_of
from dinov3seg_jax.costs.topology import Estimate, advise, describe, estimate, topology_mesh
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.models.presets import ANYUP
from dinov3seg_jax.training.chips import find_chip
from tests.tiny import MODEL

CHIP = find_chip("TPU v5e")
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None


def make_estimate(flops=197e12, memory=81.9e9, sent=20e9):
    """One second of arithmetic, and a tenth of one of each traffic."""
    traffic = Traffic(memory, {"decoder": memory}, [(2, Exchange("all-gather", sent, 2))])
    bound = Bound({MATRIX: 1.5, MEMORY: 0.5}, {"decoder": 1.2, "vit": 0.8}, unfilled=0.25, silent=3)
    return Estimate("v5e:4x4", "TPU v5e", 16, CHIP, 1, 60, int(2e9), int(3e9), flops, flops / 2, traffic, bound)


@pytest.mark.parametrize(
    ("costs", "bound", "utilisation"),
    [
        ({}, "arithmetic", 0.5),
        ({"memory": 1638e9}, "memory", 0.25),
        ({"sent": 400e9}, "interconnect", 0.25),
    ],
)
def test_the_resource_that_needs_longest_bounds_the_step(costs, bound, utilisation):
    found = make_estimate(**costs)
    assert found.bound_by == bound
    assert found.utilisation == pytest.approx(utilisation)


def test_the_paragraph_says_what_is_held_and_what_bounds():
    text = describe(make_estimate())
    assert "16 chips" in text
    assert "5.00 of 16 GB" in text
    assert "all-gather" in text
    assert "decoder 81.9 GB" in text
    assert "bound by arithmetic: at best 1000.0 ms a step, 50% of the chips' peak, if all else is hidden" in text


def test_the_paragraph_ends_with_the_time_of_operations_one_after_the_other():
    found = make_estimate()
    assert found.honest_utilisation == pytest.approx(0.25)
    lines = describe(found).splitlines()
    assert lines[-1] == "  operation by operation: at best 2000.0 ms, 25% of the chips' peak"
    text = "\n".join(lines)
    assert "operations wait for: matrix unit 1500.0 ms, memory 500.0 ms" in text
    assert "time by part: decoder 1200.0 ms, vit 800.0 ms" in text
    assert "not filled, and float32: 250.0 ms" in text
    assert "3 runs of kernels do not say" in text


def test_advice_to_hold_frozen_parameters_whole_where_there_is_room():
    advice = advise(make_estimate(), int(7e9))
    assert "--config.fsdp_frozen=False" in advice
    assert advice.endswith("with 12 of 16 GB in use")


def test_a_plan_gives_this_advice_for_what_is_cut(monkeypatch, capsys):
    monkeypatch.setattr("dinov3seg_jax.costs.dry_run.topology_mesh", lambda config, _: mesh_of(config, 4))
    monkeypatch.setattr("dinov3seg_jax.costs.dry_run.estimate", lambda *_: make_estimate())
    monkeypatch.setattr(topology, "WORTH", 0)
    data = dataclasses.replace(load_config("quickstart").data, crop_size=32)
    dry_run(Config(model=MODEL, data=data, fsdp_bytes=0), "v5e:2x2")
    assert "note: frozen parameters are gathered" in capsys.readouterr().err


@pytest.mark.parametrize("elsewhere", [0, int(0.1e9), int(9e9)])
def test_no_advice_without_room_or_need(elsewhere):
    assert advise(make_estimate(), elsewhere) == ""


@pytest.mark.skipif(HAS_COMPILER, reason="libtpu is installed")
def test_without_a_compiler_one_sentence_says_what_to_install():
    with pytest.raises(UserError, match="pip install libtpu"):
        dry_run(load_config("configs/pod.py", []), "v5e:4x4")


def pretend(monkeypatch, devices):
    """A compiler that knows one slice."""
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **_: SimpleNamespace(devices=devices))


@pytest.mark.parametrize("said", ["no such shape\nand a paragraph more", ""])
def test_a_slice_that_the_compiler_does_not_know(monkeypatch, said):
    def refuse(**_):
        raise RuntimeError(said)

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", refuse)
    with pytest.raises(
        UserError, match=rf"^--topology v5e:3x4 cannot be .* \({said[:8] or 'Runtime'}.*\); name a slice"
    ):
        topology_mesh(Config(), "v5e:3x4")


def test_chips_whose_peaks_are_not_known(monkeypatch):
    pretend(monkeypatch, [SimpleNamespace(device_kind="TPU v99")])
    with pytest.raises(
        UserError, match="v99:2x2 has TPU v99 chips, whose peaks are not known; name a slice of v4, v5e"
    ):
        topology_mesh(Config(), "v99:2x2")


def refuse_to_compile(monkeypatch, message):
    step = SimpleNamespace(trace=lambda *_: SimpleNamespace(lower=lambda: None))
    program = SimpleNamespace(step=step, state=None, frozen=None, described_names=lambda tokens: tokens)
    monkeypatch.setattr(topology, "topology_mesh", lambda *_: None)
    monkeypatch.setattr(topology, "describe_step", lambda *_: program)

    def refuse(lowered):
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(topology, "_compile", refuse)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("RESOURCE_EXHAUSTED: compile error.\n  Used 22.5G of 15.7G hbm.\n\nTotal 22G", r"Used 22.5G of 15.7G hbm\."),
        ("RESOURCE_EXHAUSTED: too large", "RESOURCE_EXHAUSTED: too large"),
    ],
)
def test_a_step_that_does_not_fit(monkeypatch, message, why):
    refuse_to_compile(monkeypatch, message)
    with pytest.raises(UserError, match=rf"memory of v5e:4x4 \({why}\); set a smaller --config.train.batch_size, or"):
        estimate(Config(), "v5e:4x4", [], None)


def test_what_else_the_compiler_fails_at_is_no_mistake_of_the_user(monkeypatch):
    refuse_to_compile(monkeypatch, "INTERNAL: a bug")
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        estimate(Config(), "v5e:4x4", [], None)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="libtpu is not installed")
def test_the_nano_step_compiles_for_a_slice(capsys):
    dry_run(load_config("configs/quickstart.py", ["train.batch_size=16"]), "v5e:2x2")
    printed = capsys.readouterr().out
    assert "v5e:2x2: 4 chips (TPU v5 lite), 4 crops each" in printed
    assert "all-reduce" in printed


def test_the_config_for_pods_knows_its_backbones():
    assert load_config("configs/pod.py:vit7b", []).model.vision.dim == 4096
    with pytest.raises(UserError, match="knows vitl, vit7b, .* and not 'vits'; name some of them"):
        load_config("configs/pod.py:vits", [])


@pytest.mark.parametrize(
    ("words", "batch", "steps", "rate", "warmup"),
    [
        ("vitl", 256, 1250, 1.6e-3, 62),
        ("batch=4", 4, 80_000, 2e-4, 4000),
        ("paper_rate,batch=4", 4, 80_000, 2e-4, 0),
        ("vit7b, linear_rate, batch=16", 16, 20_000, 8e-4, 1000),
        ("paper_steps,paper_rate", 256, 80_000, 2e-4, 0),
    ],
)
def test_steps_and_rate_of_a_pod_follow_its_batch(words, batch, steps, rate, warmup):
    train = load_config(f"pod:{words}").train
    assert (train.batch_size, train.steps, train.warmup_steps) == (batch, steps, warmup)
    assert train.learning_rate == pytest.approx(rate)


def test_a_pod_begins_from_anyups_weights_or_not():
    assert load_config("pod:anyup").model.early == ANYUP
    assert load_config("pod").model.early == EarlyRefinementConfig()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("batch=many", "'batch=many' is no number of crops; name one, as in batch=256"),
        ("batch=0", "'batch=0' is no number of crops"),
        ("vitl,vit7b", "'vitl' and 'vit7b' cannot both be; leave one out"),
        ("batch=4,batch=8", "'batch=4' and 'batch=8' cannot both be"),
        ("sqrt", "and not 'sqrt'; name some of them"),
    ],
)
def test_words_for_a_pod_that_say_nothing(words, message):
    with pytest.raises(UserError, match=message):
        load_config(f"pod:{words}")
