"""Few lengths in place of many, so that lists and batches share compiled programs."""

LENGTH_STEP = 8


def bucket(count: int) -> int:
    """The next multiple of 8, or of an eighth of the next power of two: few lengths, and little of them unused.

    Lists of many lengths share compiled programs: 8, 16, .. 64, 80, 96, .. 128, 160, ...
    """
    step = max(LENGTH_STEP, 2 ** (max(count, 1) - 1).bit_length() // 8)
    return max(1, -(-count // step)) * step
