"""The least time of small programs, against hand counts; the chip does one of each a second."""

import pytest

from dinov3seg_jax.costs.hlo import Program
from dinov3seg_jax.costs.roofline import LINKS, MATRIX, MEMORY, VECTOR, bound
from dinov3seg_jax.training.chips import Chip

CHIP = Chip(flops=1, bandwidth=1, interconnect=1, vector=1, side=1)
MAP = 8 * 128 * 4  # bytes of a map, and as many operations for its exponential


def entry(*lines, before=""):
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{before}\nENTRY %main (p: f32[8,128]) -> f32[8,128] {{\n{body}\n}}\n"


PARAMETER = "%p = f32[8,128]{1,0:T(8,128)} parameter(0)"
ON_CHIP = "f32[8,128]{1,0:T(8,128)S(1)}"


def of(*lines, chip=CHIP, before=""):
    return bound(Program(entry(PARAMETER, *lines, before=before)), chip)


def test_each_operation_takes_as_long_as_its_slowest_resource():
    found = of(
        "%e = f32[8,128]{1,0:T(8,128)} exponential(%p)",  # reads and writes a map, 4 operations an element
        f"%a = {ON_CHIP} add(%e, %e)",  # one operation an element, reads its map twice
        f"ROOT %t = {ON_CHIP} exponential(%a)",  # stays on the chip
    )
    assert found.by_resource == {MEMORY: 2 * MAP + 2 * MAP, VECTOR: MAP}
    assert found.seconds == 5 * MAP


def test_products_that_do_not_fill_the_unit_take_the_time_of_those_that_do():
    chip = Chip(flops=1e-3, bandwidth=1, interconnect=1, vector=1, side=128)
    found = of("ROOT %c = f32[8,8]{1,0:S(1)} convolution(%p, %p), dim_labels=bf_oi->bf", chip=chip)
    assert found.by_resource == {MATRIX: pytest.approx(2 * 128**3 * 1e3)}
    assert found.unfilled == pytest.approx((2 * 128**3 - 2 * 8 * 8 * 128) * 1e3)


LOOP = """%body (q: (f32[8,128])) -> (f32[8,128]) {
  %q = (f32[8,128]{1,0}) parameter(0)
  %x = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%q), index=0
  %y = f32[8,128]{1,0:T(8,128)S(1)} exponential(%x)
  ROOT %t = (f32[8,128]{1,0}) tuple(%y)
}
"""
WHILE = '%w = (f32[8,128]{1,0}) while(%q), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"5"}}'


def test_a_loop_counts_as_often_as_it_runs():
    assert of(WHILE, before=LOOP).by_resource == {VECTOR: 5 * MAP}


def copied(*between, before=""):
    start = "%s = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%p)"
    return of(start, *between, f"ROOT %d = {ON_CHIP} copy-done(%s)", before=before)


def test_a_copy_is_hidden_by_work_that_needs_no_memory():
    assert copied().by_resource == {MEMORY: MAP}
    assert copied(f"%e = {ON_CHIP} exponential(%x)").by_resource == {VECTOR: MAP}
    assert copied(f"%e = {ON_CHIP} add(%x, %x)").by_resource == {VECTOR: MAP / 4, MEMORY: 3 * MAP / 4}
    assert copied("%m = f32[8,128]{1,0} copy(%p)").by_resource == {MEMORY: 2 * MAP + MAP}  # memory is not idle
    assert copied(WHILE, before=LOOP).by_resource == {VECTOR: 5 * MAP}


def test_idle_time_is_given_away_once():
    start = "(f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%p)"
    found = of(
        f"%s = {start}",
        f"%t = {start}",
        f"%e = {ON_CHIP} exponential(%x)",
        f"%d = {ON_CHIP} copy-done(%s)",
        f"ROOT %f = {ON_CHIP} copy-done(%t)",
    )
    assert found.by_resource == {VECTOR: MAP, MEMORY: MAP}


def test_what_nothing_in_this_program_waits_for_runs_beside_what_follows():
    start = "%s = (f32[8,128]{1,0:S(1)}, f32[8,128]{1,0}, u32[]{:S(2)}) copy-start(%p)"
    assert of(start, f"ROOT %e = {ON_CHIP} exponential(%x)").by_resource == {VECTOR: MAP}
    assert of(f"%e = {ON_CHIP} exponential(%x)", start).by_resource == {VECTOR: MAP, MEMORY: MAP}


GATHER = "replica_groups=[1,4]<=[4], dimensions={0}"
FOUR = "f32[32,128]{1,0:T(8,128)S(1)}"


def test_a_collective_counts_in_full_or_what_nothing_hides():
    slow = Chip(flops=1, bandwidth=1e9, interconnect=1, vector=1)
    at_once = of(f"%x = {ON_CHIP} copy(%p)", f"ROOT %g = {FOUR} all-gather(%x), {GATHER}", chip=slow)
    assert at_once.by_resource[LINKS] == 3 * MAP
    begun = of(
        f"%x = {ON_CHIP} copy(%p)",
        f"%s = ({ON_CHIP}, {FOUR}) all-gather-start(%x), {GATHER}",
        f"%e = {ON_CHIP} exponential(%x)",
        f"ROOT %g = {FOUR} all-gather-done(%s)",
        chip=slow,
    )
    assert begun.by_resource[LINKS] == pytest.approx(2 * MAP)
    assert begun.seconds == pytest.approx(3 * MAP, rel=1e-5)


def test_kernels_that_say_nothing_are_counted():
    kernel = f'ROOT %k = {ON_CHIP} custom-call(%x), custom_call_target="tpu_custom_call"'
    assert of(kernel).silent == 1


HELD = "f32[32,128]{1,0:T(8,128)}"
ONE = "f32[8,128]{1,0:T(8,128)}"
PARTS = f"""%begin (a: f32[8,128]) -> (f32[8,128], f32[32,128]) {{
  %a = {ONE} parameter(0)
  %g = {HELD} all-gather(%a), channel_id=3, {GATHER}
  ROOT %c = ({ONE}, {HELD}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}

%beside (a: f32[8,128], b: f32[32,128], x: f32[8,128]) -> (f32[8,128], f32[8,128], f32[32,128], f32[32,128]) {{
  %a = {ONE} parameter(0)
  %b = {HELD} parameter(1)
  %x = {ONE} parameter(2)
  %g = {HELD} all-gather(%a), channel_id=3, {GATHER}
  %e = {ONE} exponential(%x)
  ROOT %t = ({ONE}, {ONE}, {HELD}, {HELD}) tuple(%e, %a, %b, %g)
}}

%end (a: f32[8,128], b: f32[32,128]) -> f32[32,128] {{
  %a = {ONE} parameter(0)
  %b = {HELD} parameter(1)
  %g = {HELD} all-gather(%a), channel_id=3, {GATHER}
  ROOT %c = {HELD} custom-call(%a, %b, %g), custom_call_target="AsyncCollectiveDone"
}}

%body (q: (f32[8,128], f32[32,128])) -> (f32[8,128], f32[32,128]) {{
  %q = ({ONE}, {HELD}) parameter(0)
  %i = {ONE} get-tuple-element(%q), index=0
  %j = {HELD} get-tuple-element(%q), index=1
  %f = ({ONE}, {ONE}, {HELD}, {HELD}) fusion(%i, %j, %i), kind=kOutput, calls=%beside
  %k = {ONE} get-tuple-element(%f), index=0
  ROOT %t = ({ONE}, {HELD}) tuple(%k, %j)
}}
"""
SPREAD = (
    f"%s = ({ONE}, {HELD}) fusion(%p), kind=kCustom, calls=%begin",
    f'%w = ({ONE}, {HELD}) while(%s), condition=%c, body=%body, backend_config={{"known_trip_count":{{"n":"5"}}}}',
    f"%x = {ONE} get-tuple-element(%w), index=0",
    f"%y = {HELD} get-tuple-element(%w), index=1",
    f"ROOT %d = {HELD} fusion(%x, %y), kind=kCustom, calls=%end",
)


def test_a_collective_that_is_spread_over_a_loop_counts_once_and_is_hidden_by_it():
    """Each of its parts names it: where it begins, in every turn of a loop that computes beside it, and at its end."""
    traffic = Program(entry(PARAMETER, *SPREAD, before=PARTS)).traffic()
    assert traffic.by_kind() == {"all-gather": (1, 4 * MAP)}
    assert traffic.memory == (1 + 4) * MAP + 5 * (1 + 1) * MAP  # its own, and what the loop's exponentials move
    fast = Chip(flops=1, bandwidth=1e9, interconnect=1, vector=1)
    assert of(*SPREAD, chip=fast, before=PARTS).by_resource == {VECTOR: 5 * MAP}  # the links need 3
    slow = Chip(flops=1, bandwidth=1e9, interconnect=0.5, vector=1)
    assert of(*SPREAD, chip=slow, before=PARTS).by_resource == {VECTOR: 5 * MAP, LINKS: pytest.approx(MAP, rel=1e-5)}
