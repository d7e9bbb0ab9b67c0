"""Texts in XML 1.0, which cannot hold every character."""

import re
from xml.sax.saxutils import quoteattr

FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # however written


def legal(text: str) -> str:
    """The text, with a mark for each character that XML cannot hold."""
    return FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", text)


def quoted(text: str) -> str:
    """The value of an attribute, in quotes; a line's end stays one."""
    return quoteattr(legal(text))
