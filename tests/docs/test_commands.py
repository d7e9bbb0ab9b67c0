"""The reference of the commands: every command of the table, with what it takes."""

from dinov3seg_jax.cli.main import COMMANDS
from docs.site import commands


def test_the_page():
    page = commands.page()
    assert [line[4:-1] for line in page.splitlines() if line.startswith("## ")] == list(COMMANDS)
    assert "| `--overwrite` | segment every picture of a folder again |" in page
    assert "([class_lists](../class_lists.md)); required |" in page
    assert "`--checkpoint`, `--weights`, `--model` `FOLDER`" in page
    assert "default: predictions |" in page


def test_kinds_that_take_the_same_are_told_together():
    page = commands.page()
    convert = page[page.index("## `convert`") : page.index("## `verify`")]
    assert "| `sam` | SAM's image encoder |" in convert
    assert convert.count("`--rounded_periods`") == 2  # of all kinds of weights, and of verify
