"""RISE against its expectation, its masks against their definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import smoothjax as sj
from smoothjax.attribution import rise
from smoothjax.reductions import mean_and_stderr, relative_error, stack

SHAPE = (13, 9, 2)
W = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
# What hides: one value for each channel.
BASELINE = jnp.array([[[0.5, -1.0]]], jnp.float32)
PARTS = np.sum(np.asarray(W * (X - BASELINE), np.float64), axis=-1)


def linear(params, x):
    return jnp.sum(params * x)


def smooth(params, x):
    return jnp.tanh(jnp.sum(params * x) / 10)


def stretched_cells(size, cells):
    """What RISE makes of each cell along an axis by itself, (shifts, size, cells)."""
    cell = -(-size // cells)
    fine = np.arange((cells + 1) * cell)
    centres = (fine + 0.5) / len(fine) * cells - 0.5
    basis = np.stack([np.interp(centres, np.arange(cells), row) for row in np.eye(cells)], 1)
    return np.stack([basis[shift : shift + size] for shift in range(cell)])


def mask_correlation(size, cells):
    """E[m_i m_j] / p, over shifts, for cells of which exactly one is 1 at a time."""
    weights = np.eye(size)[None] if cells is None else stretched_cells(size, cells)
    return np.mean(weights @ np.swapaxes(weights, 1, 2), axis=0)


@pytest.mark.parametrize(
    ("grid", "probability"), [((3, 4), 0.5), ((3, 4), 0.2), ((13, 2), 0.2), (None, 0.5)]
)
def test_rise_of_a_linear_score_is_its_expectation(grid, probability, key):
    """E[score m_i] / p, with the covariance p (1 - p) E[weights . weights] of bilinear masks."""
    rows, columns = grid or (None, None)
    rows = None if rows == 13 else rows  # as many cells as positions: no stretching
    vertical = mask_correlation(13, rows)
    horizontal = mask_correlation(9, columns)
    spread = (
        probability * (1 - probability) * np.einsum("ik,jl,kl->ij", vertical, horizontal, PARTS)
    )
    constant = float(jnp.sum(W * BASELINE))
    expected = constant + probability * PARTS.sum() + spread / probability

    explain = rise(
        linear,
        BASELINE,
        num_samples=20_000,
        grid=grid,
        probability=probability,
        reduction=mean_and_stderr(),
        chunk_size=2000,
    )
    got = jax.jit(explain)(key, W, X)
    assert got.mean.shape == (13, 9, 1)
    mean, stderr = (np.asarray(part, np.float64)[..., 0] for part in (got.mean, got.stderr))
    np.testing.assert_array_less(np.abs(mean - expected), 5 * stderr + 1e-4)
    # And the answer is sharp enough to tell the pixels apart.
    assert np.mean(stderr) < 0.5 * np.std(expected)


def test_masks_of_rise(key):
    """A constant score returns the masks themselves."""
    options = {"num_samples": 2000, "chunk_size": 1000, "probability": 0.25, "reduction": stack()}

    def masks(grid, **more):
        explain = rise(lambda params, x: 0.25, grid=grid, **options, **more)
        return np.asarray(jax.jit(explain)(key, None, X))[..., 0]

    coarse, fine = masks((3, 4)), masks(None)
    for drawn in (coarse, fine):
        assert drawn.shape == (2000, 13, 9)
        assert drawn.min() == 0.0
        assert drawn.max() == 1.0
        error = drawn.std(0) / np.sqrt(2000)
        np.testing.assert_array_less(np.abs(drawn.mean(0) - 0.25), 5 * error)
    assert set(np.unique(fine)) == {0.0, 1.0}
    # Every position is a cell of its own.
    correlation = np.corrcoef(fine.reshape(2000, -1).T) - np.eye(13 * 9)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(2000)  # of 6,786 pairs
    steps = np.abs(np.diff(coarse, axis=1))
    # Four cells of 5 rows each over three drawn: neighbours differ by at most 3 / 20.
    assert 0.1499 < steps.max() < 0.1501


def test_every_mask_of_rise_is_some_cells_stretched_and_shifted(key):
    options = {"num_samples": 500, "chunk_size": 500, "reduction": stack(), "axes": (0,)}
    explain = rise(lambda params, x: 0.5, grid=3, **options)
    drawn = np.asarray(jax.jit(explain)(key, None, jnp.ones(13)))
    visible = np.array(list(itertools.product([0, 1], repeat=3)))
    possible = np.einsum("vc,ync->vyn", visible, stretched_cells(13, 3)).reshape(40, 13)
    distances = np.abs(drawn[:, None] - possible).max(-1)
    assert distances.min(1).max() < 1e-5
    assert distances.min(0).max() < 1e-5  # none is never drawn


def test_more_masks_begin_with_the_same_masks(key):
    draws = {num: rise(smooth, num_samples=num, reduction=stack()) for num in (4, 8)}
    few, many = (jax.jit(draws[num])(key, W, X) for num in (4, 8))
    np.testing.assert_allclose(few, many[:4], rtol=1e-5)


def test_rise_gives_a_stochastic_score_a_key_for_every_mask(key):
    @sj.stochastic
    def random(key, params, x):
        return jax.random.normal(key)

    options = {"num_samples": 9, "probability": 0.9, "reduction": stack(), "chunk_size": 4}
    drawn = jax.jit(rise(random, grid=None, **options))(key, None, X)
    scores = 0.9 * np.where(drawn[:, 0, 0] == 0, drawn[:, 1, 1], drawn[:, 0, 0])
    assert np.unique(scores).size == 9
    assert 0.5 < np.std(scores) < 2


def test_leaves_of_rise_are_masked_independently(key):
    """And those of a leaf do not depend on what the leaves before it are."""
    explain = rise(
        lambda tree: 0.5, grid=None, axes=(0,), argnum=0, num_samples=400, reduction=stack()
    )
    drawn = jax.jit(explain)(key, {"a": jnp.ones(3), "b": jnp.ones(3)})
    correlation = np.corrcoef(np.concatenate([drawn["a"], drawn["b"]], axis=1).T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(400)
    beside = jax.jit(explain)(key, {"a": jnp.ones(3, int), "b": jnp.ones(3)})
    np.testing.assert_array_equal(beside["b"], drawn["b"])


@pytest.mark.slow
def test_rise_stops_at_a_tolerance(key):
    options = {"num_samples": 4000, "grid": 3, "chunk_size": 16}
    whole = jax.jit(rise(smooth, **options))(key, W, X)
    loose, tight = (
        rise(smooth, **options, tolerance=tolerance, reduction=mean_and_stderr())
        for tolerance in (0.5, 0.1)
    )
    few, many = (jax.jit(explain)(key, W, X) for explain in (loose, tight))
    assert 16 <= few.num_samples < many.num_samples < 4000
    assert relative_error(many) < 0.1
    deviation = np.linalg.norm(many.mean - whole) / np.linalg.norm(whole)
    assert 0.02 < deviation < 0.3


NOT_BEFORE_0_10 = pytest.mark.skipif(
    jax.__version_info__ < (0, 10),
    reason="JAX before 0.10 cannot divide draws over an Explicit axis",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=NOT_BEFORE_0_10)]
)
def test_rise_spreads_over_devices(axis_type, key):
    if jax.device_count() < 8:
        pytest.skip("needs eight (forced CPU) devices")
    options = {"num_samples": 64, "grid": (3, 4), "chunk_size": 16}
    whole = jax.jit(rise(smooth, **options))(key, W, X)
    devices = jax.make_mesh((8,), ("draws",), axis_types=(axis_type,))
    explain = jax.jit(rise(smooth, **options, sharding=NamedSharding(devices, P("draws"))))
    with jax.set_mesh(devices):
        lowered = explain.lower(key, W, X)
        spread = lowered.compile()(key, W, X)
    np.testing.assert_allclose(spread, whole, rtol=1e-4, atol=1e-6)
    assert "draws" in lowered.as_text()
