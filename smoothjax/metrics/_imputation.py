"""Imputation: what is hidden of x, from what is around it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from smoothjax._axes import axes_of
from smoothjax._trees import wide_dtype

_MOST_STEPS = 400


def linear_imputation(
    key: jax.Array, x: jax.Array, axes: tuple[int, ...], noise: float
) -> Callable[[jax.Array], jax.Array]:
    """Returns `impute(hidden)`: x with hidden entries the weighted mean of their neighbours.

    Neighbours differ by at most 1 along each of `axes`, and count half as much for each axis beyond
    the first along which they differ. To what is imputed, Gaussian noise of that deviation is
    added, the same in each call. Where all entries are hidden, each channel has its mean.
    """
    axes = axes_of(x.shape, axes)
    wide = x.astype(wide_dtype(x.dtype))
    mean = jnp.mean(wide, axes, keepdims=True)
    above_mean = wide - mean
    eps = noise * jax.random.normal(key, x.shape, wide.dtype)
    total = _sum_of_neighbours(jnp.ones_like(wide), axes)

    def impute(hidden):
        hidden = jnp.broadcast_to(hidden, x.shape)

        # total_i u_i - sum_n w_n u_n = 0 for hidden i, with u known where it is not hidden.
        def equations(u):
            around = _sum_of_neighbours(jnp.where(hidden, u, 0), axes)
            return jnp.where(hidden, total * u - around, u)

        known = jnp.where(hidden, 0, above_mean)
        sides = jnp.where(hidden, _sum_of_neighbours(known, axes), 0)
        found, _ = cg(equations, sides, tol=1e-4, maxiter=_MOST_STEPS)
        return jnp.where(hidden, mean + found + eps, wide).astype(x.dtype)

    return impute


def _sum_of_neighbours(values, axes):
    """The sum of an entry's neighbours, those beside it with weight 1, nothing beyond the edges."""
    around = values
    for axis in axes:
        pad = [(1, 1) if other == axis else (0, 0) for other in range(values.ndim)]
        padded, size = jnp.pad(around, pad), values.shape[axis]
        before, after = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in (0, 2))
        around = around + (before + after) / 2
    return 2 * (around - values)
