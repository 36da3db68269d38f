"""The search for the best cut-off."""

import functools
import itertools
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import smoothjax as sj
from smoothjax.spectral import (
    best_cutoff,
    butterworth,
    forgrad,
    lowpass,
)

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def identity(params, x):
    del params
    return x


def random_map(shape, seed=0, dtype=np.float32):
    return jnp.asarray(0.7 + np.random.default_rng(seed).standard_normal(shape), dtype)


CUTOFFS = (0, 1, 2.5, math.inf)


def faithfulness(params, x, attribution, label):
    return params * jnp.vdot(attribution, x[..., 0]) / jnp.sum(attribution**2) + label


def explain_squares(params, x, label):
    return params * x**2 + label


@pytest.fixture
def batch():
    return random_map((6, 7, 8, 2)), jnp.arange(6, dtype=jnp.float32)


def test_best_cutoff_scores_every_example_at_every_cutoff(batch):
    search = best_cutoff(explain_squares, faithfulness, CUTOFFS)
    found = jax.jit(search)(2.0, *batch)
    assert not sj.is_stochastic(search)
    assert search.__name__ == "best_cutoff(explain_squares)"

    @jax.jit
    def score(x, label, cutoff):
        attribution = forgrad(explain_squares, cutoff)(2.0, x, label)
        return faithfulness(2.0, x, attribution, label)

    scores = np.array([[score(x, y, c) for c in CUTOFFS] for x, y in zip(*batch, strict=True)])
    close(found.scores, scores, rtol=1e-4)
    close(found.mean, scores.mean(axis=0), rtol=1e-4)
    close(found.stderr, stats.sem(scores, axis=0), rtol=1e-4)
    close(found.cutoffs, np.array(CUTOFFS))
    assert found.best == CUTOFFS[np.argmax(scores.mean(axis=0))]


def test_best_cutoff_tunes_any_transform(batch):
    xs = batch[0]

    def peak(params, x, attribution):
        return jnp.max(attribution) - jnp.min(attribution)

    def mine(explain, cutoff):
        return lowpass(sj.pool(explain, jnp.sum), cutoff, window=butterworth(1))

    found = jax.jit(best_cutoff(identity, peak, CUTOFFS, transform=mine))(None, xs)
    x = xs[3].sum(axis=-1)
    soft = [lowpass(lambda: x, c, window=butterworth(1))() for c in CUTOFFS]
    close(found.scores[3], [np.ptp(s) for s in soft], atol=1e-4)


def test_best_cutoff_passes_keys_on(key, batch):
    xs, labels = batch
    noisy = sj.smoothgrad(explain_squares, 0.2, num_samples=1)

    @sj.stochastic
    def judged(key, params, x, attribution, label):
        return jnp.vdot(attribution, jax.random.normal(key, attribution.shape, np.float32)) + label

    search = best_cutoff(noisy, judged, CUTOFFS)
    assert sj.is_stochastic(search)
    found = jax.jit(search)(key, 2.0, xs, labels)

    @jax.jit
    def score(i, cutoff):
        explain_key, judge_key = jax.random.split(jax.random.fold_in(key, i))
        attribution = forgrad(noisy, cutoff)(explain_key, 2.0, xs[i], labels[i])
        return judged(judge_key, 2.0, xs[i], attribution, labels[i])

    for i in (0, 4):
        close(found.scores[i], [score(i, c) for c in CUTOFFS], rtol=1e-4, atol=1e-4)
    # A stochastic faithfulness alone makes the search stochastic too.
    alone = best_cutoff(explain_squares, judged, CUTOFFS)
    assert sj.is_stochastic(alone)
    assert jax.eval_shape(alone, key, 2.0, xs, labels).scores.shape == (6, 4)


def test_best_cutoff_computes_each_attribution_once(batch):
    seen, traced = [], []

    def explain(params, x):
        traced.append(x)
        jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0, 0])
        return x

    search = jax.jit(best_cutoff(explain, lambda p, x, a: a[0, 0], CUTOFFS))
    search(None, batch[0])
    search(None, batch[0] + 1)
    jax.effects_barrier()
    assert len(seen) == 2 * len(batch[0])
    assert len(traced) == 1


@functools.cache
def revealing_search(cutoffs):
    """A search in which x is the scores of an example, by cut-off."""

    def reveal(explain, cutoff):
        return lambda: jnp.sum(jnp.where(np.asarray(cutoffs, cutoff.dtype) == cutoff, explain(), 0))

    return jax.jit(best_cutoff(identity, lambda p, x, a: a, cutoffs, transform=reveal))


def search_of(scores, cutoffs):
    """What the search makes of given scores."""
    found = revealing_search(tuple(cutoffs))(None, jnp.asarray(scores, jnp.float32))
    return jax.tree.map(np.asarray, found)


def test_parsimonious_uses_paired_standard_errors():
    # Examples differ by far more than cut-offs do, so unpaired errors would call all of them equal.
    base = np.linspace(-10, 10, 21)[:, None]
    jitter = 0.01 * np.random.default_rng(0).standard_normal((21, 4))
    scores = base + np.array([0.0, 0.9, 1.0, 0.95]) + jitter
    found = search_of(scores, [9, 5, 7, 3])
    assert (found.best, found.parsimonious, found.flat) == (7, 7, False)
    assert np.all(found.stderr > 1)
    # Shifted up, the cut-off of 5 is within its error, and filters more than the best.
    scores[:, 1] = scores[:, 2] + np.resize([0.01, -0.012], 21)
    found = search_of(scores, [9, 5, 7, 3])
    assert (found.best, found.parsimonious) == (7, 5)
    scores[:, 1] -= 0.003  # now 1.4 standard errors below
    assert search_of(scores, [9, 5, 7, 3]).parsimonious == 7


def test_flat_is_a_corrected_paired_t_test():
    rng = np.random.default_rng(1)
    base = 5 * rng.standard_normal((24, 1))
    between = 0
    for height, seed in itertools.product((0.0, 0.2, 0.4, 0.6, 0.8, 1.0), range(4)):
        noise = np.random.default_rng(seed).standard_normal((24, 5))
        scores = base + noise + height * np.array([0, 0, 1, 0, 0])
        scores = np.asarray(scores, np.float32).astype(float)
        top = np.argmax(scores.mean(axis=0))
        others = [i for i in range(5) if i != top]
        chance = [stats.ttest_rel(scores[:, top], scores[:, i]).pvalue for i in others]
        assert abs(min(chance) * 10 - 0.05) > 1e-3, "too close to call in float32"
        assert search_of(scores, range(5)).flat == (min(chance) * 10 > 0.05)
        between += min(chance) * 5 < 0.05 < min(chance) * 10
    assert between  # so that pairs are told from cut-offs


def test_a_constant_curve_is_flat_and_a_constant_gap_is_not():
    base = np.arange(6.0)[:, None]
    same = search_of(base + np.zeros(3), [4, 1, 2])
    assert (bool(same.flat), same.best, same.parsimonious) == (True, 4, 1)
    apart = search_of(base + np.array([0, 1, 0]), [4, 1, 2])
    assert (bool(apart.flat), apart.best, apart.parsimonious) == (False, 1, 1)


def test_nan_scores_are_passed_on():
    found = search_of(np.arange(6.0)[:, None] + np.array([0, np.nan, 1]), [4, 1, 2])
    assert np.isnan(found.best)
    assert np.isnan(found.parsimonious)
    assert np.isnan(found.mean[1])
    assert found.flat  # nothing is known


def test_a_flat_curve_warns_when_it_can(batch):
    def unfiltered(explain, cutoff):
        return lambda: cutoff.astype(np.float32) * explain()[0, 0, 0]

    flat = best_cutoff(identity, lambda p, x, a: x[0, 0, 0], CUTOFFS, transform=unfiltered)
    with pytest.warns(UserWarning, match="flat within its errors: on 6 examples") as caught:
        assert flat(None, batch[0]).flat
    assert caught[0].filename == __file__
    steep = best_cutoff(identity, lambda p, x, a: a, [0, 9], transform=unfiltered)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jax.jit(flat)(None, batch[0]).flat
        assert not steep(None, 3 + abs(batch[0])).flat


def test_errors_of_best_cutoff(batch):
    xs, labels = batch
    for cutoffs in ([3], 3, [[1, 2]], []):
        with pytest.raises(ValueError, match="two or more numbers"):
            best_cutoff(identity, faithfulness, cutoffs)
    with pytest.raises(TypeError, match=r"(?s)faithfulness must be a function.*in best_cutoff$"):
        best_cutoff(identity, 3, CUTOFFS)
    with pytest.raises(TypeError, match="transform must be a function"):
        best_cutoff(identity, faithfulness, CUTOFFS, transform=3)
    search = best_cutoff(explain_squares, faithfulness, CUTOFFS)
    for wrong, error in ((labels[:3], ValueError), (3.0, TypeError)):
        with pytest.raises(error, match=r"(?s)along a leading axis.*in best_cutoff\("):
            search(2.0, xs, wrong)
    with pytest.raises(ValueError, match="at least 2"):
        search(2.0, xs[:1], labels[:1])
    for wrong in (lambda p, x, a: a, lambda p, x, a: jnp.complex64(1j)):
        message = r"(?s)a real scalar for one example.*in faithfulness.*in best_cutoff\(identity\)"
        with pytest.raises(TypeError, match=message):
            best_cutoff(identity, wrong, CUTOFFS)(None, xs)


def test_scores_stay_in_float32_beside_64_bits():
    with jax.enable_x64(True):
        search = best_cutoff(identity, lambda p, x, a: jnp.sum(a), [1, 2], transform=lowpass)
        found = jax.eval_shape(search, None, jnp.ones((3, 4, 4), jnp.float32))
        assert (found.scores.dtype, found.mean.dtype) == (jnp.float32, jnp.float32)


def test_the_search_finds_where_the_signal_ends(key, direct):
    """Waves up to 3 cycles in white noise: faithfulness is minus the squared error."""
    signal = sum(direct.wave((24, 24), k)[0] for k in ((1, 0), (0, 2), (2, 2), (3, 0)))[..., None]
    noisy = sj.smoothgrad(identity, 3.0, num_samples=2)

    def closeness(params, x, attribution):
        return -jnp.mean((attribution - signal) ** 2)

    search = jax.jit(best_cutoff(noisy, closeness, [0, 1, 2, 3, 5, 9, 17], transform=lowpass))
    found = search(key, None, jnp.broadcast_to(signal, (12, *signal.shape)))
    assert (found.best, found.parsimonious) == (3, 3)
    assert not found.flat
