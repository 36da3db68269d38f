"""A small network, for all tests."""

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs of a file are of no use to the next, and take gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture
def params():
    return {
        "first": {
            "kernel": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4),
            "bias": jnp.array([0.1, -0.2, 0.3, 0.0]),
        },
        "last": jnp.array([0.5, -1.0, 2.0, 1.5]),
    }


@pytest.fixture
def score():
    """A small smooth network from x of shape (3,) to a scalar."""

    def score(params, x):
        hidden = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"])
        return hidden @ params["last"]

    return score
