"""What stands around names in a list and belongs to none of them: bullets, numbers, quotes."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from dinov3seg_jax.errors import UserError

BARS = "|｜¦"  # between the names of one class
BULLET = re.compile(r"[-*•·‣▪◦–—+]\s+(?=\S)")
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "„": "“", "«": "»", "「": "」", "`": "`"}

# A number, and what stands between it and a name.
CERTAIN = re.compile(
    r"(?:[(\[](\d+)[)\]]\s*[:.]?\s*|#?(\d+)(?:\s*[:=]\s*|[.)]\s+|\s+[-–—]\s+|\s*[,;|]\s*|\t\s*))(?=\S)"
)
LIKELY = re.compile(r"#?(\d+)(?:[.)-]\s*|\s+)(?=[^\W\d])")  # where the numbers count
BEHIND = re.compile(r"\s*(?:[:=]\s*|\t\s*)(\d+)$")
LIKELY_BEHIND = re.compile(r"\s+(\d+)$")


def unquoted(item: str) -> str:
    """A name without the quotes around it."""
    item = item.strip()
    if len(item) > 2 and QUOTES.get(item[0]) == item[-1] and item[-1] not in item[1:-1]:
        return item[1:-1].strip()
    return item


def unmarked(items: Sequence[str], source: str) -> list[str]:
    """Names without bullets, numbers and quotes; numbered ones in the order of their numbers.

    Raises:
        UserError: Some are numbered and some are not, or two have one number.
    """
    bare = [BULLET.sub("", item.strip(), count=1) if BULLET.match(item.strip()) else item.strip() for item in items]
    bare = _without_numbers([unquoted(item) for item in bare], source)
    return [name for name in map(unquoted, bare) if name]


def is_numbered(items: Sequence[str]) -> bool:
    """Whether each has a number before or behind it."""
    return bool(items) and any(all(pattern(item) for item in items) for pattern in (CERTAIN.match, BEHIND.search))


def _without_numbers(items: Sequence[str], source: str) -> list[str]:
    items = [item for item in items if item]
    numbered = [match for item in items if (match := CERTAIN.match(item))]
    if numbered and len(numbered) < len(items):
        plain = next(item for item in items if not CERTAIN.match(item))
        raise UserError(
            f"{source} holds {numbered[0].string!r} with a number and {plain!r} without one; "
            "number all names or none of them"
        )
    numbered = numbered or _counting(items, LIKELY.match)
    if numbered:
        return _in_order([(int(next(filter(None, m.groups()))), m.string[m.end() :]) for m in numbered], source)
    behind = [match for item in items if (match := BEHIND.search(item))]
    behind = behind if len(behind) == len(items) else _counting(items, LIKELY_BEHIND.search)
    return _in_order([(int(m[1]), m.string[: m.start()]) for m in behind], source) if behind else items


def _counting(items: Sequence[str], find: Callable[[str], re.Match[str] | None]) -> list[re.Match[str]]:
    """Where each item has a number, if these count up from 0 or 1, which no names do by chance."""
    found = [match for item in items if (match := find(item))]
    return found if counts_up([int(match[1]) for match in found], len(items)) else []


def counts_up(numbers: Sequence[int], items: int) -> bool:
    """Whether so many items, more than one, are numbered from 0 or from 1."""
    return items > 1 and list(numbers) in ([*range(items)], [*range(1, items + 1)])


def _in_order(pairs: Sequence[tuple[int, str]], source: str) -> list[str]:
    number, uses = Counter(number for number, _ in pairs).most_common(1)[0]
    if uses > 1:
        raise UserError(f"{source} gives the number {number} to {uses} names; give each its own, or write no numbers")
    return [name for _, name in sorted(pairs)]
