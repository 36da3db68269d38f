"""Weighted least squares of a score on which players are visible, by its normal equations."""

import jax
import jax.numpy as jnp

from smoothjax.reductions import Reduction


def normal_equations() -> Reduction:
    """Returns the reduction of draws `(row, weight, target)` to the two sides of least squares.

    They are `sum_i w_i z_i z_i'` and `sum_i w_i z_i y_i`, which do not grow with the draws.
    """

    def init(draw, num):
        del num
        row, _, target = draw
        return jnp.zeros(row.shape * 2, target.dtype), jnp.zeros(row.shape, target.dtype)

    def update(state, draws):
        rows, weights, targets = draws
        gram, moment = state
        weighted = (weights[:, None] * rows).T
        both = jnp.concatenate([rows, targets[:, None]], axis=1)
        sums = jnp.matmul(weighted, both, precision=jax.lax.Precision.HIGHEST)
        return gram + sums[:, :-1], moment + sums[:, -1]

    return Reduction(init, update, lambda state: state)
