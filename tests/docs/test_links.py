"""Mentions of pages and sections become links."""

import pytest

from docs.site.links import linked


def test_links():
    assert linked("see docs/verify.md") == "see [verify](../verify.md)"
    assert linked("§7: a | b") == r"[§7](../method.md#7-local-global-inference): a \| b"


def test_a_section_that_is_not_there():
    with pytest.raises(ValueError, match="no section 77"):
        linked("§77")
