"""SmoothGrad towards a guess: against its formula written out, and truths that are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import smoothjax as sj
from smoothjax import reductions

SHAPE = (9, 12, 3)
ESTIMATE = reductions.mean_and_stderr()

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def identity(params, x):
    del params
    return x


def always(guess):
    return lambda params, x: guess


def random_map(shape=SHAPE, seed=0):
    return jnp.asarray(0.5 + np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@functools.lru_cache
def program(sigma, num_samples, **settings):
    """A map and its estimate of x with noise, given the guess as the weights."""
    explain = sj.smoothgrad_toward(
        identity, lambda guess, x: guess, sigma, num_samples=num_samples, **settings
    )
    return jax.jit(explain)


def draws_of(key, x, sigma, num_samples):
    """The draws that are averaged."""
    keep = sj.smoothgrad(identity, sigma, num_samples=num_samples, reduction=reductions.stack())
    return keep(jax.random.split(key)[0], None, x)


def plain(key, x, sigma, num_samples):
    return np.mean(draws_of(key, x, sigma, num_samples), axis=0, dtype=float)


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=float))))


@pytest.mark.parametrize("scale", [1.0, 0.0, -2.0, 1e-8, 1e8])
def test_without_noise_it_is_the_map_whatever_the_guess(scale, key):
    x = random_map()
    close(program(0.0, 2)(key, scale * x, x), x, atol=1e-5 * max(1, scale))
    wrong = scale * random_map(seed=1)
    close(program(0.0, 2)(key, wrong, x), x, atol=1e-5 * max(1, scale))


def test_the_mean_of_the_map_is_that_of_the_draws(key):
    x, guess = random_map(), random_map(seed=1)
    found = program(3.0, 8)(key, guess, x)
    close(found.mean((0, 1)), plain(key, x, 3.0, 8).mean((0, 1)))
