"""Bytes read off the text of compiled programs, against hand counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinov3seg_jax.costs.hlo import Exchange, Program, array_bytes


@pytest.mark.parametrize(
    ("array", "size", "in_memory"),
    [
        (("f32", "8,128", "1,0", "T(8,128)"), 4096, True),
        (("bf16", "8,128", "1,0", "T(8,128)(2,1)S(1)"), 2048, False),
        (("f32", "3,100", "1,0", "T(8,128)"), 4096, True),  # filled up to a tile
        (("f32", "100,3", "0,1", "T(8,128)"), 4096, True),  # the first axis is the fastest
        (("bf16", "2,130", "1,0", "T(2,128)"), 2 * 2 * 256, True),
        (("f32", "130", "0", "T(128)"), 1024, True),
        (("pred", "7", "", ""), 7, True),
        (("s8", "", "", ""), 1, True),
        (("f32", "", "", "T(128)"), 4, True),
        (("u32", "5", "0", "S(0)"), 20, True),
    ],
)
def test_an_array_takes_its_tiles(array, size, in_memory):
    assert array_bytes(*array) == (size, in_memory)


@pytest.mark.parametrize(
    ("kind", "sent"),
    [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150), ("all-to-all", 75), ("collective-permute", 100)],
)
def test_what_a_ring_sends(kind, sent):
    assert Exchange(kind, 100, 4).sent == sent


LOOP = """HloModule m, is_scheduled=true

%body (p: (s32[], f32[8,128], f32[5,8,128])) -> (s32[], f32[8,128], f32[5,8,128]) {
  %p = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%p), index=1
  %all = f32[5,8,128]{2,1,0} get-tuple-element(%p), index=2
  %y = f32[8,128]{1,0} fusion(%x, %all, %i), kind=kLoop, calls=%one
  %z = f32[8,128]{1,0} all-reduce(%y), replica_groups=[1,4]<=[4], to_apply=%sum
  ROOT %t = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) tuple(%i, %z, %all)
}

%one (a: f32[8,128], b: f32[5,8,128], c: s32[]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[5,8,128]{2,1,0} parameter(1)
  %c = s32[] parameter(2)
  %o = s32[] constant(0)
  %s = f32[1,8,128]{2,1,0} dynamic-slice(%b, %c, %o, %o), dynamic_slice_sizes={1,8,128}
  %r = f32[8,128]{1,0} bitcast(%s)
  ROOT %d = f32[8,128]{1,0} add(%a, %r)
}

ENTRY %main (q: (s32[], f32[8,128], f32[5,8,128])) -> f32[8,128] {
  %q = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) parameter(0)
  %w = (s32[], f32[8,128]{1,0}, f32[5,8,128]{2,1,0}) while(%q), condition=%c2, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8,128]{1,0} get-tuple-element(%w), index=1
}
"""  # noqa: E501
MAP = 8 * 128 * 4


def test_a_loop_counts_as_often_as_it_runs_and_reads_slices():
    traffic = Program(LOOP).traffic()
    # The fusion reads its map, one slice and the counter, and writes a map; the sum reads and writes one.
    assert traffic.memory == 5 * ((3 * MAP + 4) + 2 * MAP)
    assert traffic.by_kind() == {"all-reduce": (5, 5 * MAP)}
    assert traffic.sent == 5 * 2 * MAP * 3 / 4


def test_a_collective_along_one_axis_of_two_takes_as_long_as_twice_its_bytes_on_all_links():
    traffic = Program(LOOP, [(x, y, 0) for y in range(2) for x in range(4)]).traffic()  # groups of 4 in a row
    assert traffic.sent == 5 * 2 * MAP * 3 / 4
    assert traffic.load == 2 * traffic.sent


def test_the_condition_says_how_often_a_loop_runs_where_nothing_else_does():
    condition = """
%c2 (r: (s32[], f32[8,128])) -> pred[] {
  %r = (s32[], f32[8,128]{1,0}) parameter(0)
  %n = s32[] constant(7)
  %j = s32[] get-tuple-element(%r), index=0
  ROOT %less = pred[] compare(%j, %n), direction=LT
}

ENTRY"""
    unknown = LOOP.replace(', backend_config={"known_trip_count":{"n":"5"}}', "").replace("\nENTRY", condition)
    assert Program(unknown).traffic().by_kind() == {"all-reduce": (7, 7 * MAP)}


def test_what_stays_on_the_chip_costs_no_memory_traffic():
    on_chip = LOOP.replace("%y = f32[8,128]{1,0}", "%y = f32[8,128]{1,0:S(1)}")
    assert Program(on_chip).traffic().memory == 5 * ((2 * MAP + 4) + MAP)


PREFETCH = """HloModule m, is_scheduled=true

%prefetch (p: f32[64,128]) -> f32[8,128] {
  %p = f32[64,128]{1,0} parameter(0)
  ROOT %c = f32[8,128]{1,0:S(1)} slice(%p), slice={[0:8], [0:128]}
}

ENTRY %main (q: f32[64,128]) -> f32[8,128] {
  %q = f32[64,128]{1,0} parameter(0)
  %s = ((f32[64,128]{1,0}), f32[8,128]{1,0:S(1)}, s32[]{:S(2)}) START(%q)CALLS
  ROOT %d = f32[8,128]{1,0:S(1)} async-done(%s)
}
"""


@pytest.mark.parametrize(("start", "calls"), [("slice-start", ""), ("async-start", ", calls=%prefetch")])
def test_what_is_brought_onto_the_chip_ahead_of_time_is_read_once_and_no_more_of_it(start, calls):
    assert Program(PREFETCH.replace("START", start).replace("CALLS", calls)).traffic().memory == MAP


def test_a_real_program_is_counted_like_xlas_own_analysis():
    compiled = jax.jit(lambda a, b: jnp.tanh(a @ b)).lower(np.ones((64, 32), "f"), np.ones((32, 16), "f")).compile()
    expected = compiled.cost_analysis()["bytes accessed"]
    assert Program(compiled.as_text()).traffic().memory == pytest.approx(expected, rel=0.01)
