"""Standard normal numbers by elementwise operations only."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial


def box_muller(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Returns independent standard normal numbers, on a CPU faster than `jax.random.normal` does.

    A choice for `sampler`, worth it where there are many weights and little to compute with each:
    `x_i = sqrt(-2 log u_i) sin(pi v_i)`, u uniform on (0, 1] and v on [-1/2, 1/2), of the two words
    of the threefry hash of key and i. Of 31 and 32 bits, they resolve the normal distribution finer
    and further (to 6.6) than the 23 bits of `jax.random.normal` in float32. What is won: no loop
    inside the hash, both of its words used, no branches of an inverse error function.

    Args:
      key: a typed PRNG key. Of an implementation other than threefry its first two words count.
      shape: the shape of the numbers, at most 2**32 in all.
      dtype: the dtype of the numbers, which are computed in float32.

    Returns:
      An array of that shape and dtype. Its first n numbers do not depend on how many there are.

    Cost: a hash, a logarithm, a root and a sine for each number, all elementwise, so that XLA makes
    one loop of them.

    Source: Box and Muller 1958, A note on the generation of random normal deviates; Salmon et al.
    2011, Parallel random numbers: as easy as 1, 2, 3.

    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> explain = sj.smoothgrad(jax.grad(score, argnums=1), 0.01, sampler=sj.noise.box_muller)
    >>> jax.jit(explain)(jax.random.key(0), jnp.ones(2), jnp.array([1.0, 2.0])).round(1)
    Array([2., 4.], dtype=float32)
    """
    index = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    first, second = _threefry2x32(jax.random.key_data(key), index)
    u = ((first >> 1).astype(jnp.float32) + 0.5) * 2**-31
    v = jax.lax.bitcast_convert_type(second, jnp.int32).astype(jnp.float32) * 2**-32
    return (jnp.sqrt(-2 * _log(u)) * _sin(jnp.pi * v)).astype(dtype)


def _threefry2x32(key, index):
    """The two words that threefry makes of a key and (0, index), as `jax.random.split` does."""
    k = (key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = k[0], index + k[1]
    for group in range(5):
        for rotation in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << rotation) | (y >> (32 - rotation)))
        x = x + k[(group + 1) % 3]
        y = y + k[(group + 2) % 3] + (group + 1)
    return x, y


# jnp.log minds zero, infinity and NaN, and jnp.sin large angles, which costs several times as much.
_LOG1P_SERIES = (
    Chebyshev.interpolate(lambda f: np.log1p(f) / f, 7, (-1 / 3, 1 / 3))
    .convert(kind=Polynomial)
    .coef.tolist()
)
_TWO_THIRDS = np.float32(2 / 3).view(np.int32)


def _log(u):
    """The logarithm of normal positive float32, to 2e-7 of it: u = 2**e m with 2/3 <= m < 4/3."""
    bits = jax.lax.bitcast_convert_type(u, jnp.int32) - _TWO_THIRDS
    m = jax.lax.bitcast_convert_type((bits & 0x7FFFFF) + _TWO_THIRDS, jnp.float32)
    f = m - 1
    log1p = 0.0
    for coefficient in reversed(_LOG1P_SERIES):
        log1p = coefficient + f * log1p
    return (bits >> 23).astype(jnp.float32) * math.log(2) + f * log1p


def _sin(t):
    """The sine of -pi/2 to pi/2 by its series, to 6e-8."""
    sine = 1.0
    for n in (10, 8, 6, 4, 2):
        sine = 1 - t * t * sine / (n * (n + 1))
    return t * sine
