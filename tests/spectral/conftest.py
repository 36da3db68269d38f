"""The Fourier transform, its radii and rings written out, one bin at a time."""

import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest


@pytest.fixture(scope="session")
def direct():
    """The functions of this file."""
    return SimpleNamespace(
        radii=radii, rings=rings, dft=dft, filter=filter_, spectrum=spectrum, wave=wave
    )


def radii(shape):
    """Radii of all bins, from signed frequencies."""
    found = np.empty(shape)
    for index in np.ndindex(shape):
        signed = [k if 2 * k <= n else k - n for k, n in zip(index, shape, strict=True)]
        cycles = [f * max(shape) / n for f, n in zip(signed, shape, strict=True)]
        found[index] = math.sqrt(sum(c * c for c in cycles))
    return found


def rings(shape):
    return np.floor(radii(shape) + 0.5).astype(int)


def dft(x, sign=-1):
    """The transform along all axes, as products with its matrices."""
    x = np.asarray(x, complex)
    for axis, n in enumerate(x.shape):
        matrix = np.exp(sign * 2j * np.pi * np.outer(np.arange(n), np.arange(n)) / n)
        x = np.moveaxis(np.tensordot(matrix, x, axes=(1, axis)), 0, axis)
    return x


def filter_(x, gain):
    return dft(dft(x) * gain, sign=1).real / x.size


def spectrum(x):
    power = np.abs(dft(x) / x.size) ** 2
    ring = rings(x.shape)
    return np.array([power[ring == r].sum() for r in range(ring.max() + 1)])


def wave(shape, k, phase=0.4):
    """A wave of k turns along each axis, and its radius."""
    grids = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    turns = sum(f * g / n for f, g, n in zip(k, grids, shape, strict=True))
    cycles = [f * max(shape) / n for f, n in zip(k, shape, strict=True)]
    return jnp.asarray(np.cos(2 * np.pi * turns + phase), np.float32), math.hypot(*cycles)
