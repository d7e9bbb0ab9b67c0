"""Mentions of pages and sections in docstrings, comments and helps, as links from a page of docs/reference/."""

import re
from pathlib import Path

METHOD = Path(__file__).parent.parent / "method.md"


def linked(text: str) -> str:
    """Text for a cell of a table: "docs/PAGE.md" and "§4" lead there, and nothing ends the cell."""
    text = re.sub(r"`?docs/(\w+)\.md`?", r"[\1](../\1.md)", text)
    return re.sub(r"§(\d+)", lambda found: f"[{found[0]}](../method.md#{_section(found[1])})", text).replace("|", r"\|")


def _section(number: str) -> str:
    """What MyST calls a heading of the method's page, as in "4-late-refinement"."""
    heading = re.search(rf"^## ({number}\. .+)$", METHOD.read_text(encoding="utf-8"), re.MULTILINE)
    if heading is None:
        raise ValueError(f"docs/method.md has no section {number}")
    return re.sub(r"[^\w -]", "", heading[1].lower()).replace(" ", "-")
