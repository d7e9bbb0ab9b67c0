"""Class lists in plain text: one name per line, or all on one line with a sign between them.

A text that can be read in two ways is refused, with both readings.
"""

import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import NoReturn

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.text.class_lists.marks import BARS, BULLET, QUOTES, counts_up, is_numbered, unquoted

COMMAS, SEMICOLONS = ",，、،﹐", ";；؛"
SPACED_BAR = re.compile(rf"\s[{BARS}]|[{BARS}]\s")
COMMENT = re.compile(r"^\s*(?:#(?!\d)|//).*|\s#\s.*$")
HEADING = re.compile(r"(?:class(?:es)?|class[_ ]?names?|names?|labels|categories)\s*:\s*", re.IGNORECASE)
HEADER = re.compile(r"(?:classes|class[_ ]?names?|names?|labels|categories)", re.IGNORECASE)  # a whole line
DOT = re.compile(r"\s*[.。．]\s+|\s+[.。．]\s*|\s*。\s*")
ABBREVIATIONS = ("st", "mt", "dr", "mr", "mrs", "ms", "jr", "sr", "no", "vs", "ft", "inc", "ltd")  # "St. Bernard"
ENTITY = re.compile(r"&(?:#\d+|#x[0-9a-fA-F]+|\w+);")  # of HTML, whose semicolon divides nothing
SHOWN = 4  # names of a reading


def read_plain(text: str, source: str) -> list[str]:
    """The names of a list, with what `marks.unmarked` takes off.

    Args:
        text: One line: names between commas, semicolons or tabs, or each with a full stop behind it. Several lines: a
            name per line, which may list others after commas; or a list between commas that goes on. Bars, without
            blanks around them on one line, are between names of one class, and stay. Comments (#) are passed over.
        source: What an error calls it.

    Raises:
        UserError: It can be read in two ways.
    """
    text = ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    lines = [line for raw in text.splitlines() if (line := COMMENT.sub("", raw).strip())]
    if lines and (heading := HEADING.match(lines[0])):
        lines = [lines[0][heading.end() :], *lines[1:]] if lines[0][heading.end() :] else lines[1:]
    if len(lines) > 2 and HEADER.fullmatch(lines[0]):
        lines = lines[1:]
    if len(lines) > 1 and all(line[-1] in COMMAS + SEMICOLONS for line in lines[:-1]):
        lines = [" ".join(lines)]
    if len(lines) == 1:
        return _of_line(lines[0], source)
    if lines and all(line.endswith((".", "。")) for line in lines):
        lines = [line[:-1] for line in lines]
    return _of_lines(lines, source)


def _of_lines(lines: Sequence[str], source: str) -> list[str]:
    """A name per line."""
    for line in lines:
        if line[-1] in COMMAS + SEMICOLONS:
            raise UserError(
                f"{source} has lines with a comma at the end, as {_short(line)}, and others without; "
                "write one name per line, or a comma behind each name"
            )
        if any(sign in line for sign in SEMICOLONS) and not _is_quoted(line):
            _refuse(source, [line], _split(line, COMMAS + SEMICOLONS))
    listing = [line for line in lines if any(sign in line for sign in COMMAS) and not _is_quoted(line)]
    if listing and len(listing) == len(lines) and not is_numbered(lines):
        _refuse(source, lines, [name for line in lines for name in _split(line, COMMAS)])
    return [", ".join(_split(line, COMMAS)) if line in listing else line for line in lines]


def _of_line(line: str, source: str) -> list[str]:
    """All names on one line."""
    if _is_quoted(line):
        return [line]
    if run := _numbered_run(line):
        return run
    free = "".join(part for part, quoted in _parts(line) if not quoted)
    commas, semicolons = (any(sign in free for sign in signs) for signs in (COMMAS, SEMICOLONS))
    if commas and semicolons:
        _refuse(source, _split(line, SEMICOLONS), _split(line, COMMAS + SEMICOLONS))
    if SPACED_BAR.search(free):
        _refuse_bars(source, line)
    if commas or semicolons or "\t" in free:
        names = _finished(_split(line, COMMAS + SEMICOLONS if commas or semicolons else "\t"))
        parts = [part for name in names for part in _dotted(name)]
        if any(not all(map(_is_abbreviation, _dotted(name)[:-1])) for name in names):
            _refuse(source, names, parts)
        return names
    for sign in (" / ", " + ", " - "):
        if sign in free and (sign != " - " or BULLET.match(line)):
            _refuse(source, [line], [part for part in line.removeprefix("- ").split(sign) if part.strip()])
    return _between_dots(line, source)


def _between_dots(line: str, source: str) -> list[str]:
    """Names with a full stop behind each, as detectors are prompted."""
    if re.fullmatch(r"[^\W\d]{2,}(?:\.[^\W\d]{2,})+", line):
        _refuse(source, [line], line.split("."))
    parts = _dotted(line)
    if len(parts) == 1:
        return parts
    if re.search(r"\s\.\s", f"{line} ") or "。" in line:
        return parts
    closed = line.endswith(".")
    if not closed and all(map(_is_abbreviation, parts[:-1])):
        return [line]
    if not closed or any(map(_is_abbreviation, parts)):
        _refuse(source, [line], parts)
    return parts


def _dotted(line: str) -> list[str]:
    return [part for part in DOT.split(f"{line} ") if part.strip()]


def _is_abbreviation(word: str) -> bool:
    last = word.split()[-1]
    return (len(last) == 1 and last.isupper()) or "." in last or last.lower() in ABBREVIATIONS


def _numbered_run(line: str) -> list[str]:
    """The items of "1. grass 2. wood"; none if the line is no such list."""
    items = [item.strip() for item in re.split(r"(?:^|\s)(?=[(\[]?\d+[.):\]]+\s)", line) if item.strip()]
    numbers = [int(match[1]) for item in items if (match := re.match(r"[(\[]?(\d+)", item))]
    return [item.rstrip(f"{COMMAS}{SEMICOLONS}. ") for item in items] if counts_up(numbers, len(items)) else []


def _finished(names: list[str]) -> list[str]:
    """Without the full stop and the "and" of a sentence."""
    if len(names) > 1 and re.search(r"[^.]\.$", names[-1]) and not any(name.endswith(".") for name in names[:-1]):
        names[-1] = names[-1][:-1]
    if len(names) > 1:
        names[-1] = re.sub(r"^(?:and|or|&)\s+(?=\S)", "", names[-1])
    return names


def _split(line: str, signs: str) -> list[str]:
    """At signs outside quotes; nothing is left of empty parts."""
    names, current = [], ""
    for part, quoted in _parts(line):
        if quoted:
            current += part
            continue
        first, *others = re.split(f"[{re.escape(signs)}]", part)
        current += first
        for other in others:
            names.append(current)
            current = other
    return [name.strip() for name in (*names, current) if name.strip()]


def _parts(line: str) -> Iterator[tuple[str, bool]]:
    """The line in pieces, and whether each is a name in quotes: from a sign, or an end of the line, to another."""
    signs = re.escape(COMMAS + SEMICOLONS + BARS)
    opened = "".join(re.escape(quote) for quote in QUOTES)
    place = 0
    for match in re.finditer(rf"(?:(?<=^)|(?<=[{signs}\s]))[{opened}]", line):
        if match.start() < place or line[: match.start()].rstrip()[-1:] not in ("", *COMMAS, *SEMICOLONS, *BARS):
            continue
        closed = re.compile(rf"{re.escape(QUOTES[match[0]])}(?=\s*(?:[{signs}]|$))").search(line, match.end())
        if closed:
            yield line[place : match.start()], False
            yield line[match.start() : closed.end()], True
            place = closed.end()
    yield line[place:], False


def _is_quoted(line: str) -> bool:
    return unquoted(line) != line.strip()


def _refuse(source: str, one: Sequence[str], other: Sequence[str]) -> NoReturn:
    """Both readings."""
    first, second = (_reading([unquoted(name) for name in names]) for names in (one, other))
    listed = [", ".join(_split(name, COMMAS + SEMICOLONS + BARS)) for name in one[:2]]
    example = ", ".join(json.dumps(name, ensure_ascii=False) for name in listed) + (", ..." if len(one) > 2 else "")
    raise UserError(
        f"{source} can be read as {first}, or as {second}; for the second write commas between names on one line, "
        f"for the first a JSON list, [{_cut(example)}]"
    )


def _refuse_bars(source: str, line: str) -> NoReturn:
    """Both readings of bars with blanks, as they stand between columns and between synonyms."""
    tight = re.sub(rf"\s*([{BARS}])\s*", r"\1", line).strip(BARS)
    one, each = (_reading(_split(tight, signs)) for signs in (COMMAS + SEMICOLONS, COMMAS + SEMICOLONS + BARS))
    raise UserError(
        f"{source} can be read as {one}, or as {each}; for the first, where '|' is between names of one class, "
        f"write no blanks around it, as '{_cut(tight)}', for the second commas"
    )


def _reading(names: Sequence[str]) -> str:
    shown = ", ".join(_short(name) for name in names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {'class' if len(names) == 1 else 'classes'} ({shown})"


def _short(name: str) -> str:
    return f"'{_cut(name)}'"


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."
