"""Shared by the tests of training."""

from collections.abc import Iterator

import pytest

from tests.training import lives


@pytest.fixture(autouse=True)
def nothing_goes_on() -> Iterator[None]:
    """A test that fails leaves no process behind, which would slow down those that follow."""
    yield
    lives.end_all()
