"""Occlusion of linear and additive scores, written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.attribution import occlusion

SHAPE = (13, 9, 2)
W = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
# What hides: one value for each channel.
BASELINE = jnp.array([[[0.5, -1.0]]], jnp.float32)
PARTS = np.sum(np.asarray(W * (X - BASELINE), np.float64), axis=-1)


def linear(params, x):
    return jnp.sum(params * x)


@pytest.mark.parametrize("chunk_size", [1, 4])
@pytest.mark.parametrize("wrap", [jax.jit, lambda f: jax.vmap(f, (None, 0))])
def test_a_nan_behind_a_patch_stays_there(wrap, chunk_size):
    def score(params, x):
        return jnp.where(x[0] == 0, jnp.nan, jnp.sum(params * x))

    explain = wrap(occlusion(score, 1, 1, axes=(0,), chunk_size=chunk_size))
    x = jnp.ones(4) if wrap is jax.jit else jnp.ones((2, 4))
    np.testing.assert_array_equal(jnp.atleast_2d(explain(jnp.ones(4), x))[0], [np.nan, 1, 1, 1])


def test_what_hides_may_be_infinite():
    explain = occlusion(lambda w, x: jnp.sum(w * jnp.exp(x)), 1, 1, -jnp.inf, axes=(0,))
    np.testing.assert_array_equal(explain(jnp.ones(3), jnp.zeros(3)), np.ones(3))


def test_occlusion_in_float64():
    with jax.enable_x64(True):
        x = jnp.asarray(np.linspace(0.1, 2.0, 7))
        explain = occlusion(linear, 3, 2, axes=(0,))
        patches = [slice(s, s + 3) for s in (0, 2, 4)]
        drops = [x[p].sum() for p in patches]
        want = [
            np.mean([d for d, p in zip(drops, patches, strict=True) if i in range(7)[p]])
            for i in range(7)
        ]
        np.testing.assert_allclose(explain(jnp.ones(7), x), want, rtol=1e-14)


@pytest.mark.parametrize(
    ("patch", "stride"), [((4, 3), (3, 2)), (1, 1), (5, 5), (4, 3), ((13, 8), 1), ((13, 1), 1)]
)
def test_occlusion_of_a_linear_score_is_the_mean_of_patch_sums(patch, stride):
    """Written out: every patch from every start, the last one moved back to the edge."""
    rows, columns = (patch, patch) if isinstance(patch, int) else patch
    row_step, column_step = (stride, stride) if isinstance(stride, int) else stride

    def starts(size, length, step):
        inside = list(range(0, size - length + 1, step))
        return inside if inside[-1] == size - length else [*inside, size - length]

    total, covered = np.zeros(SHAPE[:2]), np.zeros(SHAPE[:2])
    for i, j in itertools.product(starts(13, rows, row_step), starts(9, columns, column_step)):
        place = np.s_[i : i + rows, j : j + columns]
        total[place] += PARTS[place].sum()
        covered[place] += 1
    got = jax.jit(occlusion(linear, patch, stride, BASELINE))(W, X)
    assert got.shape == (13, 9, 1)
    np.testing.assert_allclose(got[..., 0], total / covered, rtol=1e-4, atol=1e-4)


def test_occlusion_of_an_additive_score_by_single_features_is_exact():
    def additive(params, x):
        return jnp.sum(params * x**3)

    x = jnp.array([0.3, -0.7, 1.1])
    w = jnp.array([1.0, -2.0, 0.5])
    got = occlusion(additive, 1, 1, 0.5, axes=(0,))(w, x)
    np.testing.assert_allclose(got, w * (x**3 - 0.5**3), rtol=1e-5, atol=1e-6)


def test_a_patch_over_all_of_x_is_refused():
    """The map would be constant; of x with one position there is nothing else."""
    with pytest.raises(ValueError, match=r"\(32, 32\).* covers all of x.*smaller one, such as 4"):
        occlusion(linear, 32)(1.0, jnp.ones((32, 32, 3)))
    with pytest.raises(ValueError, match=r"covers all of x.*such as 1"):
        occlusion(linear, 5, 1, axes=(0,))(1.0, jnp.ones(5))
    got = occlusion(linear, 1, axes=(0,))(1.0, jnp.ones((1, 3)))
    np.testing.assert_array_equal(got, [[3.0]])


def test_occlusion_runs_over_signals_and_volumes():
    signal = jnp.ones((7, 3))
    got = occlusion(linear, 3, 2, axes=(0,))(jnp.ones((7, 3)), signal)
    np.testing.assert_allclose(got, jnp.full((7, 1), 9.0))
    got = occlusion(linear, 2, 2, axes=(0, 1, -1))(jnp.ones((4, 4, 4)), jnp.ones((4, 4, 4)))
    np.testing.assert_allclose(got, jnp.full((4, 4, 4), 8.0))
