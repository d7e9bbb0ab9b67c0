"""What a traced function holds, against counts by hand and against the compiler."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from dinov3seg_jax.config_files import load_config
from dinov3seg_jax.costs.memory import Reading, peak
from dinov3seg_jax.costs.step_memory import memory_of, mesh_of, step_memory, trace_one_device
from dinov3seg_jax.models import presets
from dinov3seg_jax.training.program import describe_step
from dinov3seg_jax.training.sharding import make_mesh
from tests.models.tiny import QUICK

NAMES = 46, 12
SIDE = 64
MAP = SIDE * SIDE * 4
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def held(function, *arguments, **options):
    """Bytes at the fullest moment, in maps of SIDE x SIDE."""
    reading = Reading(lambda equation: "all", **options)
    return peak(jax.make_jaxpr(function)(*arguments).jaxpr, reading).total() / MAP


def test_what_is_cheap_lies_nowhere():
    assert held(lambda x: (2 * x + 1).astype(jnp.bfloat16).sum(), X) < 0.01


def test_a_product_reads_what_lies_in_memory():
    assert held(lambda x: ((2 * x) @ x).sum(), X) == pytest.approx(2, abs=0.01)


def test_what_two_kernels_read_is_computed_once():
    def function(x):
        y = jnp.sin(x)
        return (y @ x).sum() + y.max()

    assert held(function, X) == pytest.approx(2, abs=0.01)


def test_values_live_until_they_are_last_read():
    def chain(x):
        for _ in range(5):
            x = x @ x
        return x

    def all_at_the_end(x):
        found = [x @ x + number for number in range(5)]
        return jnp.stack([part @ part for part in found[::-1]])

    assert held(chain, X) == pytest.approx(2, abs=0.01)
    assert held(all_at_the_end, X) == pytest.approx(10, abs=0.01)


def test_a_loop_keeps_what_it_stacks_and_one_turn():
    def loop(x):
        return jax.lax.scan(lambda x, _: (x @ x, x), x, length=7)

    assert held(loop, X) == pytest.approx(9, abs=0.01)


def test_what_is_recomputed_is_not_kept():
    def kept(x):
        for _ in range(4):
            x = jnp.sin(x @ x)
        return x.sum()

    def recomputed(x):
        for _ in range(4):
            x = jax.checkpoint(lambda x: jnp.sin(x @ x))(x)
        return x.sum()

    assert held(jax.grad(recomputed), X) < held(jax.grad(kept), X) - 1.5


def test_a_choice_of_the_platform_is_made():
    def function(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x.sum(), default=lambda x: (x @ x).sum())

    assert held(function, X, platform="cpu") < 0.01
    assert held(function, X) == pytest.approx(1, abs=0.01)


def test_known_values_have_a_size_and_a_part_of_their_own():
    known = {((SIDE, SIDE), jnp.dtype("float32")): ("gradients", 100)}
    found = peak(jax.make_jaxpr(lambda x: x @ x)(X).jaxpr, Reading(lambda equation: "all", known))
    assert found == {"gradients": 100}


def vits():
    """The quick start's run with a ViT-S on crops of 384."""
    config = load_config("quickstart", ["data.crop_size=384", "train.batch_size=2", "train.hardest_classes=16"])
    return dataclasses.replace(config, model=dataclasses.replace(config.model, vision=presets.VISION["vits16"]))


@pytest.mark.slow
@pytest.mark.parametrize("config", [load_config("quickstart"), vits()], ids=["nano", "ViT-S"])
def test_the_estimate_is_near_the_compilers_own_figure(config):
    """CPU's compiler undoes what recomputes, so nothing does here."""
    one = trace_one_device(config, 1, NAMES)
    real = describe_step(config, make_mesh(1, 1, jax.devices()[:1]))
    estimated = step_memory(real, one, "cpu").total
    compiled = real.step.trace(*one.arguments).lower().compile(compiler_options=QUICK).memory_analysis()
    assert estimated == pytest.approx(compiled.argument_size_in_bytes + compiled.temp_size_in_bytes, rel=0.25)


@pytest.mark.slow
def test_more_devices_hold_less_each():
    config = load_config("quickstart", ["fsdp_bytes=1000"])
    one, eight = (memory_of(config, devices, NAMES) for devices in (1, 8))
    assert (
        one.given["trainable parameters"] / 8 < eight.given["trainable parameters"] < one.given["trainable parameters"]
    )
    assert one.total / 9 < eight.total < one.total / 4


def test_the_mesh_of_devices_that_are_not_there():
    shapes = [
        dict(mesh_of(load_config("quickstart", ["model_parallel=2", *more]), 8).shape) for more in ((), ("replicas=2",))
    ]
    assert shapes == [{"replica": 1, "data": 4, "model": 2}, {"replica": 2, "data": 2, "model": 2}]


@pytest.mark.slow
def test_devices_that_share_the_classes_out_hold_fewer_each():
    config = load_config("quickstart", ["train.hardest_classes=0"])
    alone, shared = (
        memory_of(dataclasses.replace(config, model_parallel=model), model, NAMES).made for model in (1, 4)
    )
    assert shared["late refinement"] + shared["decoder"] < 0.3 * (alone["late refinement"] + alone["decoder"])
