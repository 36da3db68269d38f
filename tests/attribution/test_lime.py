"""LIME against a ridge regression in NumPy on the masks that it asked for, and linear scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smoothjax.attribution import lime

RNG = np.random.default_rng(0)
SHAPE = (13, 9, 2)
W = RNG.normal(size=SHAPE).astype(np.float32)
X = RNG.normal(size=SHAPE).astype(np.float32)
BASELINE = np.array([[[0.5, -1.0]]], np.float32)
KEY = jax.random.key(0)


def linear(params, x):
    return jnp.sum(params * x)


def bent(x):
    return 5 + jnp.tanh(x[0] - 2 * x[1] + 0.3 * x[2]) + x[3] * x[4]


def cosine_distance(masks):
    """From a mask of ones, written out."""
    ones = np.ones(masks.shape[1])
    lengths = np.linalg.norm(masks, axis=1) * np.linalg.norm(ones)
    return 1 - masks @ ones / np.where(lengths == 0, 1, lengths)


def ridge(masks, scores, weights, alpha):
    """With an intercept that is not shrunk: of what differs from the weighted means."""
    weights = weights / weights.sum()
    masks, scores = masks - weights @ masks, scores - weights @ scores
    gram = (weights[:, None] * masks).T @ masks
    return np.linalg.solve(gram + alpha * np.eye(len(gram)), (weights * scores) @ masks)


@pytest.mark.parametrize(("width", "alpha"), [(0.25, 1.0), (0.25, 30.0), (0.7, 0.0)])
def test_slopes_are_those_of_a_weighted_ridge_regression(width, alpha, key):
    """Behind masks, an x of ones is the mask."""
    seen = []

    def recording(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return bent(x)

    settings = {"num_samples": 60, "width": width, "alpha": alpha}
    explain = lime(recording, argnum=0, axes=(0,), chunk_size=1, **settings)
    got = jax.jit(explain)(key, jnp.ones(5))
    jax.effects_barrier()
    masks = np.array(seen, float)
    masks = np.delete(masks, np.argmax(masks.sum(1)), axis=0)  # x itself, asked for once
    assert masks.shape == (60, 5)
    weights = np.exp(-(cosine_distance(masks) ** 2) / (2 * width**2))
    scores = np.array([float(bent(mask)) for mask in masks])
    want = ridge(masks, scores, weights, alpha / weights.sum())
    assert np.std(want) > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_masks_hide_half(key):
    seen = []

    def recording(x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.sum(x)

    jax.block_until_ready(jax.jit(lime(recording, argnum=0, axes=(0,)))(key, jnp.ones(5)))
    jax.effects_barrier()
    masks = np.array(seen)
    assert len(np.unique(masks, axis=0)) == 32
    np.testing.assert_allclose(masks.mean(0), 0.5, atol=4 * 0.5 / np.sqrt(1000))
    correlations = np.corrcoef(masks.T) - np.eye(5)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(1000)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_linear_score_is_exact_without_shrinking(offset, key):
    """13 rows make cells of 7 and 6, 9 columns of 3."""
    rows, columns = np.arange(13) * 2 // 13, np.arange(9) // 3
    parts = np.sum(W * (X - BASELINE), axis=-1, dtype=float)
    sums = np.array([[parts[rows == i][:, columns == j].sum() for j in range(3)] for i in (0, 1)])

    def score(params, x):
        return linear(params, x) + offset

    got = jax.jit(lime(score, BASELINE, num_samples=50, grid=(2, 3), alpha=0.0))(key, W, X)
    assert got.shape == (13, 9, 1)
    np.testing.assert_allclose(got[..., 0], sums[rows][:, columns], atol=1e-3)
    shrunk = jax.jit(lime(score, BASELINE, num_samples=50, grid=(2, 3)))(key, W, X)
    assert np.sum(np.square(shrunk)) < np.sum(np.square(got))


def test_segments_are_cells_by_other_names(key):
    names = np.array([[7, -2], [30, 4]])[np.arange(6) // 3][:, np.arange(8) // 4]

    def score(params, x):
        return jnp.tanh(jnp.sum(params * x) / 5)

    @jax.jit
    def both(w, x):
        settings = {"num_samples": 400, "alpha": 0.0}
        cells, segments = lime(score, grid=2, **settings), lime(score, segments=names, **settings)
        return cells(key, w, x), segments(key, w, x)

    cells, segments = both(W[:6, :8], X[:6, :8])
    np.testing.assert_allclose(segments, cells, atol=0.1)  # of other masks
    assert np.unique(np.asarray(segments).round(4)).size == 4


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: lime(linear, num_samples=1), ValueError, "num_samples must be at least 2"),
        (lambda: lime(linear, width=0), ValueError, "width must be above 0"),
        (lambda: lime(linear, alpha=-1), ValueError, "alpha must be at least 0"),
        (lambda: lime(linear, segments=np.ones(2)), TypeError, "an array of integers"),
        (
            lambda: lime(linear, segments=np.zeros((13, 8), int))(KEY, W, X),
            ValueError,
            "shaped like the map of x",
        ),
    ],
)
def test_errors_say_what_to_type(make, error, match):
    with pytest.raises(error, match=match):
        make()
