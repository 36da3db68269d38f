"""What comes first: the order and the ranks of an attribution's entries, ties included.

Where an order is needed, ties fall in one random but fixed order for each number of entries: a
constant attribution then scores like a random one, where the order of the indices would score it
like a map of the upper rows. Where only ranks are needed, tied entries share the mean of theirs.
"""

import jax
import jax.numpy as jnp
import numpy as np


def order(values: jax.Array) -> jax.Array:
    """Returns the flat indices of `values` from the greatest to the least, ties at random.

    The same values always give the same order. NaN counts as the greatest, and 0 equals -0.

    >>> from smoothjax.metrics._ranking import order
    >>> print(order(jnp.array([0.5, -1.0, 2.0])))
    [2 0 1]
    """
    shuffled = jnp.asarray(np.random.default_rng(0).permutation(values.size).astype(np.int32))
    ascending = jnp.argsort(values.ravel()[shuffled], stable=True)
    return shuffled[ascending[::-1]]


def ranks(values: jax.Array) -> jax.Array:
    """Returns the rank of each entry, from 1 for the least, as a flat array; ties share their mean.

    They are floats of the default dtype. NaN counts as the greatest, and as tied with NaN.

    >>> from smoothjax.metrics._ranking import ranks
    >>> print(ranks(jnp.array([0.5, -1.0, 2.0, 0.5])))
    [2.5 1.  4.  2.5]
    """
    flat = values.ravel()
    ascending = jnp.sort(flat)
    # Bisection, the default method, is five times faster on a CPU than sorting twice more.
    below = jnp.searchsorted(ascending, flat, side="left")
    not_above = jnp.searchsorted(ascending, flat, side="right")
    return (below + not_above + 1).astype(float) / 2
