"""The table of the ablation: means, spreads and paired intervals of known numbers."""

import pytest

from benchmarks.ablation import SCORES, table
from configs.ablation import VARIANTS, get_config
from dinov3seg_jax.errors import UserError


def scores(*values):
    return {str(seed): dict.fromkeys(SCORES, value) for seed, value in enumerate(values)}


def cells(results):
    rows = (line.strip("| ").split(" | ") for line in table(results).splitlines()[2:])
    return {row[0]: row[1:] for row in rows}


def test_differences_are_paired_and_their_interval_is_students():
    rows = cells({"full": scores(50, 40, 60), "no_late": scores(45, 37, 56), "zero_shot": scores(20, 10, 30)})
    assert list(rows) == ["zero_shot", "full", "no_late"]
    assert rows["full"] == ["3", *["50.0 ± 10.0"] * 3, *["–"] * 3]
    assert rows["no_late"] == ["3", *["46.0 ± 9.5"] * 3, *["-4.0 ± 2.5"] * 3]  # 4.303 * 1 / sqrt(3)
    assert rows["zero_shot"][4:] == ["-30.0 ± 0.0"] * 3


def test_one_seed_has_no_spread_and_what_has_no_pair_no_difference():
    rows = cells({"full": {"0": dict.fromkeys(SCORES, 50)}, "no_late": {"1": dict.fromkeys(SCORES, 45)}})
    assert rows["full"] == ["1", *["50.0"] * 3, *["–"] * 3]
    assert rows["no_late"] == ["1", *["45.0"] * 3, *["–"] * 3]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_differs_in_its_options_alone(variant):
    ours, full = (dict(get_config(name).to_dict()) for name in (variant, "full"))

    def flat(tree, prefix=""):
        for name, value in tree.items():
            yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(f"{prefix}{name}", value)]

    different = {name for (name, one), (_, other) in zip(flat(ours), flat(full), strict=True) if one != other}
    assert different - {"workdir"} == VARIANTS[variant].keys()


def test_an_unknown_variant_is_refused():
    with pytest.raises(UserError, match="there is no variant 'no_lates'"):
        get_config("no_lates")
