"""Who takes part in a collective, against lists by hand."""

import pytest

from dinov3seg_jax.costs.groups import first_group, share_of_links

CUBE = [(x, y, z) for x in range(2) for y in range(2) for z in range(2)]
PLANE = [(x, y, 0) for x in range(2) for y in range(4)]


@pytest.mark.parametrize(
    ("text", "group"),
    [
        ("replica_groups=[2,4]<=[8], x", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=[1,256]<=[16,16]T(1,0)", [16 * column + row for row in range(16) for column in range(16)]),
        ("replica_groups={{0,5,2},{3,4,1}}", [0, 5, 2]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", [0, 1]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, x={0}", [0, 2, 4, 6]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}", list(range(8))),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(1)2}", [0, 8]),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)4}", [0, 2, 4, 6]),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=2] {'axis_0':(2)2,'axis_1'}", [0, 1, 4, 5]),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(1)2,'axis_0':(4)2}", [0, 1, 4, 5]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, y={0}", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([8]) {'axis_0'}", [0, 2, 4, 6]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=(3,1,2,0) {'axis_0'}", [3, 2]),
        ("source_target_pairs={{0,1},{1,2}}", [0, 1]),
        ("dimensions={0}", [0]),
        ("replica_groups={}", [0]),
    ],
)
def test_who_takes_part_in_a_collective(text, group):
    assert first_group(text) == group


@pytest.mark.parametrize(
    ("group", "places", "share"),
    [
        (range(8), CUBE, 1),
        ([0, 1, 2, 3], CUBE, 2 / 3),
        ([0, 4], CUBE, 1 / 3),
        ([0, 7], CUBE, 1),
        (range(4), PLANE, 1 / 2),
        (range(8), PLANE, 1),
        ([0], PLANE, 1),
        (range(8), (), 1),
    ],
)
def test_a_group_along_some_axes_of_the_torus_has_their_links_alone(group, places, share):
    assert share_of_links(list(group), places) == pytest.approx(share)
