"""No fixture goes unread: each file belongs to a prefix that some parity test runs."""

import pytest

from tests.parity.fixtures import KNOWN_PREFIXES, fixture_files, fixture_folder, topic


def test_the_fixture_folder_holds_fixtures():
    assert fixture_files(), f"no fixture in {fixture_folder()}"


@pytest.mark.parametrize("path", fixture_files(), ids=lambda path: path.stem)
def test_every_fixture_is_read_by_some_test(path):
    assert topic(path).startswith(KNOWN_PREFIXES), f"no parity test reads {path.name}: add its prefix to KNOWN_PREFIXES"
