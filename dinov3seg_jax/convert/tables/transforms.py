"""What is done to an official tensor on its way into our parameters. Each returns one array per target."""

from collections.abc import Callable

import numpy as np

Transform = Callable[[np.ndarray], tuple[np.ndarray, ...]]


def keep(x: np.ndarray) -> tuple[np.ndarray]:
    """As it is."""
    return (x,)


def flat(x: np.ndarray) -> tuple[np.ndarray]:
    """One axis of whatever had several: a token stored as [1, 1, d]."""
    return (x.reshape(-1),)


def unbatched(x: np.ndarray) -> tuple[np.ndarray]:
    """Without a leading axis of length 1."""
    return (x.reshape(x.shape[1:]),)


def linear(x: np.ndarray) -> tuple[np.ndarray]:
    """(out, in) -> (in, out)."""
    return (x.T,)


def thirds(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """A fused q, k, v bias, in this order."""
    return tuple(np.split(x, 3))


def linear_thirds(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """A fused (3 out, in) weight whose rows are q, k, v in this order."""
    return tuple(part.T for part in np.split(x, 3))


def linear_guided(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """A dense layer on [own channels | guidance] as two layers; the own channels are as many as the outputs.

    Without guidance there is one layer.
    """
    own, guidance = np.split(x.T, [x.shape[0]])
    return (own, guidance) if guidance.size else (own,)


def convolution(x: np.ndarray) -> tuple[np.ndarray]:
    """OIHW -> HWIO."""
    return (x.transpose(2, 3, 1, 0),)


def pointwise(x: np.ndarray) -> tuple[np.ndarray]:
    """A 1 x 1 convolution as a dense layer."""
    return (x.reshape(x.shape[:2]).T,)


def patches(x: np.ndarray) -> tuple[np.ndarray]:
    """A patch embedding's convolution as a dense layer over (row, column, channel)."""
    return (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),)


def transposed_convolution(x: np.ndarray) -> tuple[np.ndarray]:
    """(in, out, kh, kw) -> (in, kh * kw * out)."""
    return (x.transpose(0, 2, 3, 1).reshape(x.shape[0], -1),)
