"""`dinov3seg models`: the released models that can be had by name, and which of them are here."""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from dinov3seg_jax.cli.parsing import Command
from dinov3seg_jax.store.kept import is_kept, models_folder
from dinov3seg_jax.store.released import RELEASED, Released

DESCRIPTION = "list the released models that can be fetched by name"
HEADINGS = ("name", "task", "download", "memory", "A-150", "access", "here", "licence")
LEGEND = """\
download: size of the files. memory: of the weights alone, as float32. A-150: published mIoU on ADE20K, in percent.
?: not known here. --json says more; docs/models.md has the rest."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--json", action="store_true", help="print everything that is known, for programs")


def run(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print the table."""
    if options.json:
        print(json.dumps({name: _known(name, row) for name, row in RELEASED.items()}, indent=1, ensure_ascii=False))
        return 0
    rows = [HEADINGS, *(_row(name, row) for name, row in RELEASED.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\n{LEGEND}\nModels are kept in {models_folder()}.")
    return 0


def _row(name: str, row: Released) -> tuple[str, ...]:
    score = row.scores.get("A-150")
    return (
        name,
        row.task,
        _gigabytes(row.size),
        _gigabytes(row.memory),
        "?" if score is None else f"{score:.1f}",
        _access(row),
        "yes" if is_kept(name) else "no",
        row.licence,
    )


def _access(row: Released) -> str:
    """Whether a name is enough, or a page has to be visited first."""
    if row.gated:
        return "gated"
    return "open" if row.files else "by hand"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size else "?"


def _known(name: str, row: Released) -> dict[str, object]:
    known = dataclasses.asdict(row) | {"size": row.size, "memory": row.memory}
    return known | {"access": _access(row), "folder": str(models_folder() / name) if is_kept(name) else None}


COMMAND = Command("models", DESCRIPTION, add_arguments, run)
main = COMMAND.main
