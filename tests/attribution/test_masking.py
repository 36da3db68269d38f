"""Masking methods against theory: linear and additive scores, Ishigami's function, independence."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import smoothjax as sj
from smoothjax.attribution import hsic, occlusion, rise, sobol
from smoothjax.attribution.masking import _cells, _designs, _hsic, _Map, _mix
from smoothjax.reductions import mean_and_stderr, relative_error, stack
from smoothjax.spectral import lowpass

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


# Without a remainder of the chunk, which takes longer to compile; one test has remainders.
METHODS = {
    "occlusion": functools.partial(occlusion, patch=(4, 3), stride=(3, 2), chunk_size=8),
    "rise": functools.partial(rise, num_samples=20, grid=(3, 4)),
    "sobol": functools.partial(sobol, num_designs=5, grid=(2, 3)),
    "hsic": functools.partial(hsic, num_samples=20, grid=(2, 3)),
}
TABULAR = {
    "occlusion": functools.partial(occlusion, patch=1, stride=1, axes=(0,)),
    "rise": functools.partial(rise, num_samples=20, grid=None, axes=(0,)),
    "sobol": functools.partial(sobol, num_designs=10, grid=None, axes=(0,)),
    "hsic": functools.partial(hsic, num_samples=20, grid=None, axes=(0,)),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_tabular = pytest.mark.parametrize("method", TABULAR.values(), ids=TABULAR)
each_random = pytest.mark.parametrize("name", ["rise", "sobol", "hsic"])


def call(explain, key, *args):
    return explain(key, *args) if sj.is_stochastic(explain) else explain(*args)


def run(explain, key, *args):
    return call(jax.jit(explain), key, *args)


def test_only_random_methods_take_a_key():
    stochastic = {name: sj.is_stochastic(method(linear)) for name, method in METHODS.items()}
    assert stochastic == {"occlusion": False, "rise": True, "sobol": True, "hsic": True}
    assert sj.is_stochastic(occlusion(sj.noisegrad(linear)))
    assert [method(linear).__name__ for method in METHODS.values()] == [
        f"{name}(linear)" for name in METHODS
    ]


@pytest.mark.parametrize("method", TABULAR.values(), ids=TABULAR)
def test_arrays_of_numpy_in_float64(method, key):
    """As everywhere in JAX, they are float32; warnings are errors here."""
    got = call(method(linear), key, np.ones(4), np.ones(4))
    want = call(method(linear), key, jnp.ones(4), jnp.ones(4))
    np.testing.assert_array_equal(got, want)


# Occlusion


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
    ("patch", "stride"), [((4, 3), (3, 2)), (1, 1), (5, 5), (13, 1), (4, 3), ((13, 9), 1)]
)
def test_occlusion_of_a_linear_score_is_the_mean_of_patch_sums(patch, stride):
    """Written out: every patch from every start, the last one moved back to the edge."""
    if patch == 13:
        patch = (13, 9)
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
    got = TABULAR["occlusion"](additive, baseline=0.5)(w, x)
    np.testing.assert_allclose(got, w * (x**3 - 0.5**3), rtol=1e-5, atol=1e-6)


def test_occlusion_runs_over_signals_and_volumes():
    signal = jnp.ones((7, 3))
    got = occlusion(linear, 3, 2, axes=(0,))(jnp.ones((7, 3)), signal)
    np.testing.assert_allclose(got, jnp.full((7, 1), 9.0))
    got = occlusion(linear, 2, 2, axes=(0, 1, -1))(jnp.ones((4, 4, 4)), jnp.ones((4, 4, 4)))
    np.testing.assert_allclose(got, jnp.full((4, 4, 4), 8.0))


# RISE


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


# Sobol


def ishigami(params, x):
    return jnp.sin(x[0]) + 7 * jnp.sin(x[1]) ** 2 + 0.1 * x[2] ** 4 * jnp.sin(x[0])


def test_sobol_of_ishigami(key):
    """The analytic total-order indices, and the error falls with the number of designs."""
    first = 0.5 * (1 + 0.1 * np.pi**4 / 5) ** 2
    second = 7**2 / 8
    both = 0.1**2 * np.pi**8 * 8 / 225
    truth = np.array([first + both, second, both]) / (first + second + both)
    x = jnp.full(3, jnp.pi)

    def errors(num_designs):
        explain = sobol(
            ishigami, -jnp.pi, num_designs=num_designs, grid=None, axes=(0,), chunk_size=5000
        )
        keys = jax.random.split(key, 8)
        return np.asarray(jax.jit(jax.vmap(explain, (0, None, None)))(keys, None, x)) - truth

    few, many = errors(128), errors(4096)
    assert np.sqrt(np.mean(few**2)) < 0.1
    assert np.sqrt(np.mean(many**2)) < 0.02
    np.testing.assert_array_less(np.abs(many.mean(0)), 0.01)


def test_sobol_of_a_linear_score_is_the_share_of_each_cell(key):
    """13 rows make cells of 7 and 6, 9 columns of 3."""
    rows, columns = np.arange(13) * 2 // 13, np.arange(9) // 3
    power = np.array(
        [[PARTS[rows == i][:, columns == j].sum() ** 2 for j in range(3)] for i in range(2)]
    )
    expected = (power / power.sum())[rows][:, columns]
    explain = sobol(linear, BASELINE, num_designs=4000, grid=(2, 3), chunk_size=1000)
    got = jax.jit(explain)(key, W, X)
    assert got.shape == (13, 9, 1)
    np.testing.assert_allclose(got[..., 0], expected, atol=0.02)


def test_sobol_of_an_interaction_counts_it_for_both_and_ignored_cells_not_at_all(key):
    def product(params, x):
        return (x[0] - 0.5) * (x[1] - 0.5)

    explain = sobol(product, num_designs=4000, grid=None, axes=(0,), chunk_size=1000)
    got = jax.jit(explain)(key, None, jnp.ones(3))
    np.testing.assert_allclose(got[:2], [1.0, 1.0], atol=0.1)
    assert got[2] == 0


def test_sobol_of_one_cell_is_nearer_than_latin_hypercubes_come(key):
    """Independent orders in A and B would be off by 0.1, and a lattice is by 0.01."""
    options = {"num_designs": 100, "grid": None, "axes": (0,), "chunk_size": 400}
    explain = sobol(lambda params, x: jnp.sin(7 * x[0]), **options)
    keys = jax.random.split(key, 30)
    got = np.asarray(jax.jit(jax.vmap(explain, (0, None, None)))(keys, None, jnp.ones(2)))
    assert np.sqrt(np.mean((got[:, 0] - 1) ** 2)) < 0.02
    np.testing.assert_array_equal(got[:, 1], np.zeros(30))


@pytest.mark.parametrize(("num", "side"), [(50, 8), (32, 7), (7, 3)])
def test_designs_of_sobol_are_a_lattice_for_each_cell(num, side, key):
    designs = np.asarray(_designs(key, num, 40))
    assert designs.shape == (2, num, 40)
    intervals = np.floor(designs * num).astype(int)
    # Each interval has one value, in A and in B.
    everywhere = np.broadcast_to(np.arange(num)[:, None], (2, num, 40))
    np.testing.assert_array_equal(np.sort(intervals, axis=1), everywhere)
    # In every square of a little more than sqrt(num) x sqrt(num) intervals is a point of A and B.
    for cell in range(40):
        taken = np.zeros((num, num))
        taken[intervals[0, :, cell], intervals[1, :, cell]] = 1
        ahead = np.pad(taken, (0, side - 1), mode="wrap")
        squares = np.lib.stride_tricks.sliding_window_view(ahead, (side, side)).sum((2, 3))
        assert squares.min() == 1
        assert squares.max() == 2
    # It is shifted by another number for each cell: of 40, so many are expected to differ.
    partners = intervals[1][intervals[0] == 0]
    assert np.unique(partners).size > num * (1 - np.exp(-40 / num)) - np.sqrt(num)
    # Inside its interval a value is uniform, and does not know which interval that is.
    places = designs * num % 1
    error = 1 / np.sqrt(places.size)
    np.testing.assert_allclose(places.mean(), 0.5, atol=5 * error / np.sqrt(12))
    np.testing.assert_allclose(places.std(), 12**-0.5, atol=5 * error)
    assert np.abs(np.corrcoef(places.ravel(), intervals.ravel())[0, 1]) < 5 * error
    assert places.std(axis=1).min() > 0.05
    # The cells have orders of their own.
    correlation = np.corrcoef(np.concatenate(designs, axis=1).T)
    between = correlation[:40, :40] - np.eye(40), correlation[:40, 40:] * (1 - np.eye(40))
    assert np.abs(between).max() < 5.5 / np.sqrt(num)
    assert np.abs(np.mean(between)) < 5 * error


# HSIC


def test_hsic_is_its_definition():
    """Over all different masks a, b, c, d: E[k l] + E[k] E[l] - 2 E_a[E_b[k] E_c[l]]."""
    rng = np.random.default_rng(0)
    num = 7
    visible = rng.integers(0, 2, (num, 2)).astype(bool)
    scores = rng.normal(size=num) + visible[:, 0]
    distances = np.abs(scores[:, None] - scores)
    output = np.exp(-((distances / np.median(distances[distances > 0])) ** 2) / 2)
    for cell in range(2):
        inputs = (visible[:, cell][:, None] == visible[:, cell]).astype(float)
        terms = [
            inputs[a, b] * (output[a, b] + output[c, d] - 2 * output[a, c])
            for a, b, c, d in itertools.permutations(range(num), 4)
        ]
        got = _hsic(jnp.asarray(visible), jnp.asarray(scores, jnp.float32))[cell]
        np.testing.assert_allclose(got, np.mean(terms), rtol=1e-4, atol=1e-6)


def test_hsic_of_a_score_of_one_cell(key):
    """The scores 0 and 1 are 1 apart, so the width is 1 and HSIC (1 - exp(-1/2)) / 4."""
    explain = hsic(lambda w, x: x[1], num_samples=2000, grid=None, axes=(0,), chunk_size=500)
    got = np.asarray(jax.jit(explain)(key, None, jnp.ones(3)))
    np.testing.assert_allclose(got[1], (1 - np.exp(-0.5)) / 4, rtol=0.01)
    # Given the scores, the two others are sums of random signs: their variance is known.
    half = (1 - np.exp(-0.5)) / 2
    error = np.sqrt(2 * 2000**2 * half**2) / (2 * 2000 * 1997)
    np.testing.assert_array_less(np.abs(got[[0, 2]]), 5 * error)


def test_hsic_is_zero_on_average_for_an_ignored_cell(key):
    """Already for few masks, where the biased estimator would be 0.01 to 0.02 too high."""
    explain = hsic(lambda w, x: x @ w, num_samples=20, grid=None, axes=(0,), chunk_size=20)
    keys = jax.random.split(key, 2000)
    w = jnp.array([1.0, 0.3, 0.0])
    drawn = jax.jit(jax.vmap(explain, (0, None, None)))(keys, w, jnp.ones(3))[:, 2]
    assert np.abs(drawn.mean()) < 5 * drawn.std() / np.sqrt(2000)
    assert drawn.std() / np.sqrt(2000) < 5e-4


def test_hsic_does_not_depend_on_scale_and_offset_of_the_score(key):
    x, w = jnp.ones(5), jnp.arange(5.0)
    plain = run(TABULAR["hsic"](linear), key, w, x)
    moved = run(TABULAR["hsic"](lambda w, x: 100 - 8 * linear(w, x)), key, w, x)
    np.testing.assert_allclose(plain, moved, rtol=1e-3, atol=1e-5)
    assert plain.max() > 0.01


@pytest.mark.parametrize("name", ["sobol", "hsic"])
def test_a_constant_score_depends_on_nothing_and_nan_is_not_hidden(name, key):
    explain = jax.jit(TABULAR[name](lambda w, x: w))
    np.testing.assert_allclose(explain(key, 3.0, jnp.ones(5)), np.zeros(5), atol=1e-6)
    assert np.all(np.isnan(explain(key, jnp.nan, jnp.ones(5))))


# What holds for all


@each_method
def test_any_chunk_size_gives_the_same(method, key):
    one_by_one = run(method(smooth, chunk_size=1), key, W, X)
    assert np.std(one_by_one) > 1e-3
    chunked = run(method(smooth, chunk_size=7), key, W, X)
    np.testing.assert_allclose(chunked, one_by_one, rtol=1e-4, atol=1e-5)


@each_random
def test_another_key_gives_another_map(name, key):
    explain = jax.jit(METHODS[name](smooth))
    other = explain(jax.random.key(8), W, X)
    assert not np.allclose(explain(key, W, X), other, rtol=1e-2)


def test_more_masks_begin_with_the_same_masks(key):
    draws = {num: rise(smooth, num_samples=num, reduction=stack()) for num in (4, 8)}
    few, many = (jax.jit(draws[num])(key, W, X) for num in (4, 8))
    np.testing.assert_allclose(few, many[:4], rtol=1e-5)


@each_method
def test_jit_equals_eager_and_vmap_equals_a_loop(method, key):
    explain = method(smooth)
    xs = jnp.stack([X, 2 * X, X - 0.5])
    one = jax.jit(functools.partial(call, explain))
    loop = [one(key, W, x) for x in xs]
    batched = jax.jit(jax.vmap(one, in_axes=(None, None, 0)))(key, W, xs)
    np.testing.assert_allclose(batched, jnp.stack(loop), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(call(explain, key, W, X), loop[0], rtol=1e-3, atol=1e-5)


@each_method
@pytest.mark.parametrize("transform", [sj.smoothgrad, sj.noisegrad], ids=["smooth", "noise"])
def test_every_method_goes_through_every_transform(method, transform, key):
    @jax.jit
    def smoothed(key, w, x, sigma):
        return transform(method(smooth), sigma, num_samples=3)(key, w, x)

    noisy, silent = smoothed(key, W, X, 0.1), smoothed(key, W, X, 0.0)
    assert noisy.shape == silent.shape == (13, 9, 1)
    assert np.all(np.isfinite(noisy))
    assert not np.allclose(noisy, silent, rtol=1e-3)
    if method is METHODS["occlusion"]:
        np.testing.assert_allclose(silent, method(smooth)(W, X), rtol=1e-4, atol=1e-6)


@each_tabular
def test_scores_need_no_gradient(method, key):
    """A predicted class is an integer, and the same score in floats gives the same map."""

    def predicted(params, x):
        return jnp.argmax(x[:2])

    def in_floats(params, x):
        return (x[1] > x[0]).astype(jnp.float32)

    options = {"baseline": jnp.array([1.5, 0.0, 9.0])}
    if method is not TABULAR["occlusion"]:
        options |= {"num_designs" if method is TABULAR["sobol"] else "num_samples": 100}
    x = jnp.array([1.0, 2.0, 3.0])
    got = run(method(predicted, **options), key, None, x)
    np.testing.assert_allclose(got, run(method(in_floats, **options), key, None, x), rtol=1e-6)
    assert got[1] > max(0, got[2])


@pytest.mark.parametrize("name", ["occlusion", "sobol", "hsic"])
def test_one_key_makes_one_function_of_a_stochastic_score(name, key):
    """What the key adds to all scores changes no difference between them."""

    @sj.stochastic
    def shifted(key, params, x):
        return linear(params, x) + 100 * jax.random.normal(key)

    w, x = jnp.arange(5.0), jnp.ones(5)
    explain = TABULAR[name](shifted)
    assert sj.is_stochastic(explain)
    plain = run(TABULAR[name](linear), key, w, x)
    np.testing.assert_allclose(run(explain, key, w, x), plain, rtol=1e-3, atol=1e-4)


def test_rise_gives_a_stochastic_score_a_key_for_every_mask(key):
    @sj.stochastic
    def random(key, params, x):
        return jax.random.normal(key)

    options = {"num_samples": 9, "probability": 0.9, "reduction": stack(), "chunk_size": 4}
    drawn = jax.jit(rise(random, grid=None, **options))(key, None, X)
    scores = 0.9 * np.where(drawn[:, 0, 0] == 0, drawn[:, 1, 1], drawn[:, 0, 0])
    assert np.unique(scores).size == 9
    assert 0.5 < np.std(scores) < 2


@each_method
def test_of_noisegrad_of_the_score(method, key):
    got = run(method(sj.noisegrad(smooth, 0.3, num_samples=2)), key, W, X)
    assert np.all(np.isfinite(got))
    assert not np.allclose(got, run(method(smooth), key, W, X), rtol=1e-2)


@each_tabular
def test_any_pytree_at_any_position(method, key):
    """Two float leaves side by side are one longer leaf; integers are let be, and get float0."""
    tree = {
        "a": jnp.arange(1.0, 4.0),
        "b": jnp.arange(4.0, 6.0),
        "n": jnp.arange(3, dtype=jnp.int32),
    }

    def of_tree(tree, other):
        assert tree["n"].dtype == jnp.int32
        return other * jnp.tanh((jnp.sum(tree["a"]) + jnp.sum(tree["b"])) / 9)

    got = run(method(of_tree, argnum=0), key, tree, 2.0)
    assert got["n"].dtype == jax.dtypes.float0
    assert (got["a"].shape, got["b"].shape, got["n"].shape) == ((3,), (2,), (3,))
    values = jnp.concatenate([got["a"], got["b"]])
    assert np.all(np.isfinite(values))
    assert np.std(values) > 1e-3
    if method is not TABULAR["rise"]:  # whose leaves have masks of their own
        flat = jnp.arange(1.0, 6.0)
        same = run(method(lambda x: 2 * jnp.tanh(jnp.sum(x) / 9), argnum=0), key, flat)
        np.testing.assert_allclose(values, same, rtol=1e-4, atol=1e-6)


def test_leaves_of_rise_are_masked_independently(key):
    """And those of a leaf do not depend on what the leaves before it are."""
    explain = TABULAR["rise"](lambda tree: 0.5, argnum=0, num_samples=400, reduction=stack())
    drawn = jax.jit(explain)(key, {"a": jnp.ones(3), "b": jnp.ones(3)})
    correlation = np.corrcoef(np.concatenate([drawn["a"], drawn["b"]], axis=1).T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(400)
    beside = jax.jit(explain)(key, {"a": jnp.ones(3, int), "b": jnp.ones(3)})
    np.testing.assert_array_equal(beside["b"], drawn["b"])


@pytest.mark.parametrize(
    ("method", "num_drawn", "num_scores"),
    [
        # The cells of two leaves and their shifts along two axes, for six masks.
        (functools.partial(rise, num_samples=6, grid=(3, 4)), 6 * 2 * (1 + 2), 6),
        # The orders, the shifts and the places.
        (functools.partial(sobol, num_designs=5, grid=2), 3, 1),
        (functools.partial(hsic, num_samples=6, grid=2), 6, 1),
    ],
)
def test_no_key_is_used_twice(method, num_drawn, num_scores, key, monkeypatch):
    drawn, scores, derived = [], [], []

    def noted(fun, used):
        def note_and_call(key, *args, **kwargs):
            data = jax.random.key_data(key)
            jax.debug.callback(lambda data: used.append(tuple(np.asarray(data).tolist())), data)
            return fun(key, *args, **kwargs)

        return note_and_call

    for name in ("bernoulli", "randint", "uniform"):
        monkeypatch.setattr(jax.random, name, noted(getattr(jax.random, name), drawn))
    for name in ("split", "fold_in"):
        monkeypatch.setattr(jax.random, name, noted(getattr(jax.random, name), derived))
    score = sj.stochastic(noted(lambda key, tree: jnp.sum(tree["a"]), scores))
    explain = method(score, argnum=0, chunk_size=4)
    jax.block_until_ready(explain(key, {"a": X, "b": X}))
    jax.effects_barrier()
    assert len(drawn) == len(set(drawn)) == num_drawn
    assert len(set(scores)) == num_scores
    assert not set(drawn) & set(scores)
    assert not set(derived) & set(drawn + scores)


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


@each_tabular
def test_half_precision_keeps_its_dtype(method, key):
    got = run(method(linear), key, jnp.ones(3, jnp.bfloat16), jnp.arange(3, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16


def test_half_precision_is_mixed_in_single_precision():
    """And rounded once."""
    rng = np.random.default_rng(0)
    mask = rng.uniform(size=500).astype(np.float32)
    shown, hiding = (jnp.asarray(rng.normal(size=500), jnp.bfloat16) for _ in range(2))
    exact = mask * np.asarray(shown, np.float32) + (1 - mask) * np.asarray(hiding, np.float32)
    got = _mix(jnp.asarray(mask), shown, hiding)
    assert got.dtype == jnp.bfloat16
    # All but those that a fused multiply-add may round otherwise.
    assert np.mean(got == jnp.asarray(exact, jnp.bfloat16)) > 0.99


@each_tabular
def test_a_baseline_can_be_an_array_or_a_function(method, key):
    w, x = jnp.arange(1.0, 6.0), jnp.linspace(0.5, 1.5, 5)

    def score(w, x):
        return smooth(w, x**2)

    got = [
        run(method(score, baseline=b), key, w, x)
        for b in (jnp.full(5, 0.5), lambda x: 0.5 * x[:1] / x[:1])
    ]
    np.testing.assert_allclose(got[0], got[1], rtol=1e-4, atol=1e-6)
    other = run(method(score, baseline=0.0), key, w, x)
    assert not np.allclose(got[0], other, rtol=1e-2)


@each_method
def test_maps_fit_the_input_and_the_filters(method, key):
    explain = method(smooth)
    map_ = run(explain, key, W, X)
    assert (map_ * X).shape == SHAPE
    np.testing.assert_allclose(
        run(sj.pool(lowpass(explain, 100), jnp.sum), key, W, X), map_[..., 0], rtol=1e-3, atol=1e-5
    )


@each_method
def test_traces_do_not_grow_with_the_masks(method, key):
    def traces(**more):
        count = 0

        def counted(params, x):
            nonlocal count
            count += 1
            return smooth(params, x)

        explain = method(counted, chunk_size=4, **more)
        jax.jit(functools.partial(call, explain)).lower(key, W, X)
        return count

    more = {
        "occlusion": {"stride": 1},
        "rise": {"num_samples": 203},
        "sobol": {"num_designs": 41},
        "hsic": {"num_samples": 203},
    }[method.func.__name__]
    # Three in the loop, and of occlusion the whole input before it, once for its shape.
    most = 5 if method is METHODS["occlusion"] else 3
    assert traces(**more) <= most
    assert traces() <= most


def test_memory_is_bounded_by_the_chunk(key):
    """A further mask costs a few numbers, and a mask of a chunk about an image and its map."""
    x = jnp.ones((64, 64, 3), jnp.float32)
    image = x.size * 4

    def memory(method, chunk_size, options):
        explain = method(linear, chunk_size=chunk_size, **options)
        compiled = jax.jit(functools.partial(call, explain)).lower(key, x, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    for method, few, many, allowed in [
        # Where each chunk starts: 4 bytes for 4 masks.
        (rise, {"num_samples": 100}, {"num_samples": 10_000}, 9900 + 100),
        (occlusion, {"patch": 16, "stride": 16}, {"patch": 16, "stride": 1}, 49**2),
        # The scores, and 128 numbers for 66 masks.
        (sobol, {"num_designs": 4}, {"num_designs": 40}, 36 * (66 * (4 + 1) + 128 * 4)),
        # 64 cells of a mask, and up to four numbers for each pair of masks.
        (hsic, {"num_samples": 20}, {"num_samples": 60}, 40 * 64 + 16 * (60**2 - 20**2)),
    ]:
        base = memory(method, 4, few)
        assert memory(method, 4, many) <= base + allowed
        # `rise` and `occlusion` keep the maps of a chunk, to sum them: a third of an image.
        assert 0.4 * image < (memory(method, 16, few) - base) / 12 < 1.4 * image


KEY = jax.random.key(0)
SMALL = jnp.ones((4, 4, 1))
BAD = [
    # known when building
    (lambda: occlusion(3), TypeError, "occlusion takes a function"),
    (lambda: occlusion(linear, 0), ValueError, "occlusion: patch must be at least 1; got 0"),
    (lambda: occlusion(linear, 2.5), TypeError, "occlusion: patch must be a Python int"),
    (lambda: occlusion(linear, (2, 2, 2)), ValueError, r"patch must be .* one for each of axes"),
    (lambda: occlusion(linear, 4, 0), ValueError, "occlusion: stride must be at least 1"),
    (lambda: occlusion(linear, 4, (4, 5)), ValueError, r"no patch would cover.*\(4, 5\)"),
    (lambda: occlusion(linear, 4, 4, axes=0), TypeError, r"axes must be a tuple like \(0, 1\)"),
    (lambda: occlusion(linear, 4, 4, axes=(0, 0)), ValueError, r"different axes; got \(0, 0\)"),
    (lambda: occlusion(linear, 4, 4, axes=()), ValueError, r"one or more different axes; got \(\)"),
    (lambda: occlusion(linear, 4, 4, axes=(0.5,)), TypeError, "each of axes must be a Python int"),
    (lambda: occlusion(linear, chunk_size=0), ValueError, "chunk_size must be at least 1"),
    (lambda: occlusion(linear, argnum=-1), ValueError, "argnum counts"),
    (lambda: rise(linear, num_samples=0), ValueError, "rise: num_samples must be at least 1"),
    (lambda: rise(linear, num_samples=2.0), TypeError, "rise: num_samples must be a Python int"),
    (lambda: rise(linear, grid=0), ValueError, "rise: grid must be at least 1; got 0"),
    (lambda: rise(linear, grid=(7,)), ValueError, r"rise: grid must be one number.*got \(7,\)"),
    (lambda: rise(linear, grid="7"), ValueError, "rise: grid must be one number"),
    (lambda: rise(linear, probability=0), ValueError, r"probability must be inside \(0, 1\); got"),
    (lambda: rise(linear, probability=1.0), ValueError, r"inside \(0, 1\); got 1.0"),
    (lambda: rise(linear, probability=float("nan")), ValueError, r"inside \(0, 1\); got nan"),
    (lambda: rise(linear, probability="a"), TypeError, "probability must be a number; got 'a'"),
    (lambda: rise(linear, probability=True), TypeError, "probability must be a number; got True"),
    (lambda: rise(linear, reduction=sj.reductions.mean), TypeError, "with the parentheses"),
    (lambda: rise(linear, tolerance=0.0), ValueError, "rise: tolerance must be above 0"),
    (lambda: rise(linear, sharding="draws"), TypeError, "rise: sharding is that of the axis"),
    (lambda: sobol(linear, num_designs=1), ValueError, "sobol: num_designs must be at least 2"),
    (lambda: sobol(linear, grid=-1), ValueError, "sobol: grid must be at least 1"),
    (lambda: hsic(linear, num_samples=3), ValueError, "hsic: num_samples must be at least 4"),
    (lambda: hsic(linear, chunk_size=1.5), TypeError, "hsic: chunk_size must be a Python int"),
    # known when called
    (lambda: occlusion(linear)(SMALL, SMALL), ValueError, r"a patch of \(32, 32\) .*\(4, 4, 1\)"),
    (
        lambda: occlusion(linear)(W, jnp.ones(3)),
        ValueError,
        r"axes \(0, 1\) must be .* shape \(3,\)\. Type axes=\(0,\)",
    ),
    (lambda: occlusion(linear, axes=(0, -3))(W, X), ValueError, "must be different axes"),
    (lambda: rise(linear)(KEY, SMALL, SMALL), ValueError, r"\(7, 7\) cells.*grid=None"),
    (lambda: sobol(linear)(KEY, SMALL, SMALL), ValueError, r"\(8, 8\) cells.*\(4, 4, 1\)"),
    (lambda: hsic(linear)(SMALL, SMALL), TypeError, "takes a PRNG key"),
    (lambda: hsic(linear)(KEY, SMALL), TypeError, "acts on argument 1"),
    (lambda: rise(linear)(KEY, W, jnp.ones(SHAPE, int)), TypeError, "rise needs floating-point"),
    (
        lambda: rise(linear, jnp.ones(5), grid=2)(KEY, W, X),
        ValueError,
        r"rise: baseline of shape \(5,\)",
    ),
    (
        lambda: occlusion(lambda w, x: w * x, 4, 4)(W, X),
        TypeError,
        r"real scalar for one example; got an array of shape \(13, 9, 2\) and dtype float32",
    ),
    (
        lambda: hsic(lambda w, x: jnp.complex64(1j), grid=2)(KEY, W, X),
        TypeError,
        "real scalar .* complex64",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_errors_come_before_anything_runs(key):
    def never(params, x):
        raise AssertionError

    with pytest.raises(ValueError, match="grid"):
        sobol(never, grid=20)(key, W, X)
    with pytest.raises(ValueError, match="patch"):
        occlusion(never, (14, 9))(W, X)


def test_cells_of_a_long_axis_are_apart():
    """48 kHz audio has more positions than a product of 32-bit numbers holds."""
    (cells,), num_cells = _cells([_Map((50_000,), (0,), 0)], None, "test")
    assert num_cells == 50_000
    np.testing.assert_array_equal(cells, np.arange(50_000))


@pytest.mark.parametrize("size", [1, 7, 13, 32])
def test_cells_are_as_equal_as_whole_positions_allow(size):
    for cells in range(1, size + 1):
        (numbers,), num_cells = _cells([_Map((size,), (0,), 0)], (cells,), "test")
        assert num_cells == cells
        assert np.all(np.diff(numbers) >= 0)
        counts = np.bincount(numbers, minlength=cells)
        assert counts.max() - counts.min() <= (size % cells > 0)


def test_sobol_of_a_constant_score_has_a_gradient():
    def total(weight):
        return jnp.sum(sobol(lambda w, x: w * jnp.sum(x), axes=(0,), grid=None, num_designs=4)(
            jax.random.key(0), weight, jnp.ones(3)
        ))  # fmt: skip

    assert jnp.isfinite(jax.grad(total)(0.0))
