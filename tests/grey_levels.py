"""How far two resizes of the same bytes may be apart when both are right."""

import numpy as np
import pytest

# Implementations round their weights, to 22 bits or fewer, so that a sum next to a half falls to either side. After the
# first axis that is one grey level, which the second axis hands on (times 1.25 at most, with bicubic weights) and may
# add one to. No picture exceeds this.
MOST = 2
# How often depends on the picture: 1 % of noise, 4 % of photographs at a ratio of 5 to 4, where many sums are halves;
# only patterns of very few colours exceed this. The other axis first, or no bytes in between, makes it 13 % or more.
SHARE = 0.1


def hardly_differ(ours, expected):
    away = np.abs(np.asarray(ours, int) - np.asarray(expected, int))
    assert away.max() <= MOST
    assert (away > 0).mean() <= SHARE


def differ(ours, expected):
    """The contrary: what a wrong resize must do."""
    with pytest.raises(AssertionError):
        hardly_differ(ours, expected)
