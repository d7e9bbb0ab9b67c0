"""Where words stand that are read from right to left; Hebrew א ב ג stands for any such script, Arabic ك for its own."""

import pytest

from dinov3seg_jax.reading_order import from_left, parts_from_left


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ("", ""),
        ("dog", "dog"),
        ("אבג", "גבא"),
        ("dog אבג cat", "dog גבא cat"),
        ("אב dog ג", "ג dog בא"),
        ("אב dog cat", "dog cat בא"),
        ("dog אב גא", "dog אג בא"),
        ("אב 12", "12 בא"),
        ("אב 12 גא", "אג 12 בא"),
        ("dog אב 12 גא", "dog אג 12 בא"),
        ("אב 1.5-2", "1.5-2 בא"),
        ("אב 50%", "50% בא"),
        ("אב (dog) ג", "ג (dog) בא"),
        ("dog (אב) cat", "dog (בא) cat"),
        ("אב [dog (cat)]", "[dog (cat)] בא"),
        ("dog (אב", "dog (בא"),
        ("אב!", "!בא"),
        ("ك 12-13", "13-12 ك"),
        ("אב, dog", "dog ,בא"),
        (") אב (", ") בא ("),
    ],
)
def test_the_line_as_it_is_seen(line, seen):
    assert "".join(from_left(part) if leftwards else part for part, leftwards in parts_from_left(line)) == seen


def test_a_mark_stays_with_its_letter():
    assert from_left("אָב") == "באָ"
    assert parts_from_left("dog אָב") == [("dog ", False), ("אָב", True)]


def test_parts_are_as_they_are_read():
    assert parts_from_left("dog אבג 12 cat") == [("dog ", False), ("12", False), ("אבג ", True), (" cat", False)]
