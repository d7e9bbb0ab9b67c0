"""The reference of the API has every public name."""

import re
from pathlib import Path

import dinov3seg_jax


def test_every_public_name_is_there():
    page = Path(__file__).parents[2] / "docs" / "reference" / "api.md"
    documented = re.findall(r"^\.\. auto\w+:: (\w+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert {*documented, "Config", "__version__"} == set(dinov3seg_jax.__all__)
