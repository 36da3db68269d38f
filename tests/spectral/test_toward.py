"""SmoothGrad towards a guess: against its formula written out, and where the truth is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but
from scipy import optimize

import smoothjax as sj
from smoothjax import reductions

SHAPE = (9, 12, 3)
ESTIMATE = reductions.mean_and_stderr()

close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


def identity(params, x):
    del params
    return x


def weights(params, x):
    """A guess that the weights hold."""
    del x
    return params


@functools.lru_cache
def program(sigma, num_samples, **settings):
    """What is made of x with noise, whose limit is x, and of the guess in the weights."""
    explain = sj.smoothgrad_toward(identity, weights, sigma, num_samples=num_samples, **settings)
    return jax.jit(explain)


@functools.lru_cache
def drawn(sigma, num_samples):
    """The draws that the same key averages."""
    keep = sj.smoothgrad(identity, sigma, num_samples=num_samples, reduction=reductions.stack())
    return jax.jit(lambda key, x: keep(jax.random.split(key)[0], None, x))


def random_map(shape=SHAPE, seed=0, dtype=jnp.float32):
    return jnp.asarray(0.5 + np.random.default_rng(seed).standard_normal(shape), dtype)


def smooth_map(shape=(24, 20, 3), seed=0):
    """Strongest at low frequencies, with channels that are alike."""
    x = random_map(shape, seed) @ jnp.array([[2.0, 1.0, 1.0], [0.0, 1.0, 0.5], [0.0, 0.0, 0.3]])
    return 3 * sj.lowpass(lambda: x, 5)()


def rms(x):
    return float(np.sqrt(np.mean(np.square(x, dtype=float))))


# The formula


def test_it_is_its_formula(direct, key):
    """Channels in the middle; the signal by least squares of others."""
    x, guess = (jnp.moveaxis(smooth_map((15, 22, 3), seed), -1, 1) for seed in (0, 1))
    guess += x
    n, settings = 5, {"axes": (0, 2), "channel_axis": 1, "reduction": ESTIMATE}
    found = program(9.0, n, **settings)(key, -7 * guess, x)
    draws = np.asarray(drawn(9.0, n)(key, x), float)

    def spectrum(m):
        return np.stack([direct.dft(m[:, c]) / 330 for c in range(3)])

    def products(a):
        return np.einsum("ib,jb->ij", a, a.conj()).real

    start = np.asarray(guess - guess.mean((0, 2), keepdims=True), float).ravel()
    scale = np.linalg.lstsq(start[:, None], draws.mean(0).ravel())[0]
    ring = direct.rings((15, 22))
    spectra, start = np.stack([spectrum(d) for d in draws]), scale * spectrum(np.asarray(guess))
    gap, scatter = spectra.mean(0) - start, spectra - spectra.mean(0)

    def matrices(bins):
        noise = sum(products(s[:, bins]) for s in scatter) / (n * (n - 1))
        return products(gap[:, bins]), noise, products(start[:, bins])

    fits = {r: _of_ring(*matrices(bins), bins.sum(), n) for r, bins in near(ring).items() if r}
    gains = _gains(fits, np.bincount(ring.ravel()), n)
    answer, squared, least = start + 0, np.zeros(3), np.zeros(3)
    for r, gain in gains.items():
        power, noise, _ = matrices(ring == r)
        rest = np.eye(3) - gain
        squared += np.diag(rest @ power @ rest.T - noise + 2 * gain @ noise)
        least += np.diag(gain @ noise @ gain.T)
        answer[:, ring == r] += gain @ gap[:, ring == r]
    answer = np.stack([direct.dft(a, sign=1).real for a in answer], axis=1)
    close(found.mean, answer, rtol=1e-3, atol=1e-3)
    plain = draws.std(0, ddof=1) / math.sqrt(n)
    share = np.maximum(squared, least) / (plain**2).mean((0, 2))
    close(found.stderr, plain * np.sqrt(share)[:, None], rtol=2e-3, atol=1e-3)
    assert found.num_samples == n
    shares = [np.trace(gain) / 3 for gain in gains.values()]
    assert 0.1 < np.min(shares) < np.max(shares[1:]) - 0.1 < 0.5


def near(rings):
    """Which bins a ring is estimated from: those of radius within three of it; ring 0 alone."""
    return {r: (abs(rings - r) <= 3) & (rings > 0) for r in range(1, rings.max() + 1)}


def _of_ring(power, noise, prior, num_bins, n):
    """Noise of which covariances are shrunk, D, and both `power - noise` and D in its units."""
    diagonal, degrees = np.diag(np.diag(noise)), num_bins * (n - 1)
    shrunk = (degrees * noise + 3 * diagonal) / (degrees + 3)
    half = np.linalg.inv(np.linalg.cholesky(shrunk))
    return shrunk, prior, half @ (power - noise) @ half.T, half @ prior @ half.T


def _gains(fits, bins, n):
    """tau of all rings by least squares, rho of each by its neighbours, both not negative."""
    signal, prior, one = (
        np.stack([np.sqrt(bins[r]) * m for r, m in zip(fits, matrices, strict=True)])
        for matrices in (
            [fit[2] for fit in fits.values()],
            [fit[3] for fit in fits.values()],
            [np.eye(3)] * len(fits),
        )
    )
    rows = np.stack([prior.ravel(), one.ravel()], axis=1)
    ridge = np.diag(np.sqrt(1e-3) * np.linalg.norm(rows, axis=0))
    wanted = np.append(signal.ravel(), [0, 0])
    (_, tau), _ = optimize.nnls(np.concatenate([rows, ridge]), wanted)
    least = 4 * np.sqrt(2 * n / (n - 1) / (1.001 * np.sum(one**2)))
    tau = max(tau, 0.01 * np.sum(signal * one) / (1.001 * np.sum(one**2)), least)
    points = np.arange(0, 4, 0.25)
    numbers = np.log(np.array(list(fits)) + 1)
    rhos = []
    for point in points:
        weight = np.exp(-(((point - numbers) / 0.5) ** 2) / 4)[:, None, None]
        a, b = weight * (signal - tau * one), weight * prior
        rhos.append(np.linalg.lstsq(b.reshape(-1, 1), a.ravel())[0][0])
    gains = {0: np.eye(3)}
    for r, number in zip(fits, numbers, strict=True):
        noise, own = fits[r][:2]
        lacking = max(np.interp(number, points, rhos), 0) * own + tau * noise
        gains[r] = lacking @ np.linalg.inv(lacking + noise)
    return gains


# Where the truth is known


GUESSES = {
    "right": lambda x: x,
    "half as long": lambda x: 0.5 * x,
    "zero": lambda x: 0 * x,
    "tiny": lambda x: 1e-9 * x,
    "grey": lambda x: jnp.mean(x, -1, keepdims=True) + 0 * x,
    "smoother": lambda x: sj.lowpass(lambda: x, 2)(),
    "turned": lambda x: 1.5 * x[::-1, ::-1],
    "one channel": lambda x: x * jnp.array([0.0, 1.0, 0.0]).reshape(1, 1, 3),
    "opposite": lambda x: -x,
}


@pytest.mark.parametrize("num_samples", slow_but([2, 8, 512], 2, 8))
def test_no_guess_does_harm(num_samples):
    x, sigma = smooth_map(), 3.0
    keys = jax.random.split(jax.random.key(1), 6)
    over_keys = jax.vmap(program(sigma, num_samples), (0, None, None))
    over_guesses = jax.jit(jax.vmap(over_keys, (None, 0, None)))
    guesses = jnp.stack([guess(x) for guess in GUESSES.values()])
    found = dict(zip(GUESSES, over_guesses(keys, guesses, x) - x[None, None], strict=True))
    plain = sigma / math.sqrt(num_samples)
    for name, errors in found.items():
        assert rms(errors) < 1.03 * plain, name
    assert rms(found["right"]) < 0.3 * plain


def test_without_noise_it_is_the_map_whatever_the_guess(key):
    x = random_map()
    for scale in (1.0, 0.0, -2.0, 1e-8, 1e6):
        close(program(0.0, 2)(key, scale * x, x), x, atol=1e-5 * max(1, scale))
        wrong = scale * random_map(seed=1)
        close(program(0.0, 2)(key, wrong, x), x, atol=1e-5 * max(1, scale))


def test_the_guess_has_draws_of_its_own(key):
    """Were they the same, the guess would be the mean of the draws, and nothing would move."""
    x, guesses = random_map(), []
    smooth = sj.smoothgrad(identity, 1.0, num_samples=2)

    def guess(key, params, x):
        guesses.append(smooth(key, params, x))
        return guesses[-1]

    explain = sj.smoothgrad_toward(identity, sj.stochastic(guess), 1.0, num_samples=2)
    assert rms(explain(key, None, x) - guesses[0]) > 0.1


def test_of_zeros_it_is_the_plain_mean_but_for_a_scale(key):
    """And but for the mean over the map, which is not shrunk."""
    x = random_map()
    for num_samples in (2, 8):
        found = np.asarray(program(30.0, num_samples)(key, 0 * x, x))
        plain = np.mean(np.asarray(drawn(30.0, num_samples)(key, x)), axis=0, dtype=float)
        close(found.mean((0, 1)), plain.mean((0, 1)), rtol=1e-4)
        found, plain = (m - m.mean((0, 1)) for m in (found, plain))
        scale = np.vdot(found, plain) / np.vdot(plain, plain)
        close(found, scale * plain, rtol=1e-3, atol=1e-3)
        assert 0 < scale < 0.9


def test_of_a_gaussian_field_it_is_nearly_the_best_filter(direct):
    """Errors of the guess with its own spectrum: the best gain is rho C / (rho C + N)."""
    shape, rho, sigma, num_samples, runs = (24, 24), 0.3, 4.0, 16, 40
    ring = direct.rings(shape)
    spectrum = 40 / (1 + ring) ** 1.5
    random = np.random.default_rng(0)

    def fields(num):
        white = np.fft.fft2(random.standard_normal((num, *shape)))
        return np.fft.ifft2(white * np.sqrt(spectrum)).real

    guess = fields(runs)
    truth = guess + np.sqrt(rho) * fields(runs)
    run = jax.vmap(program(sigma, num_samples, channel_axis=None, reduction=ESTIMATE))
    keys = jax.random.split(jax.random.key(2), runs)
    found = run(keys, *(jnp.asarray(m, jnp.float32) for m in (guess, truth)))
    noise = sigma**2 / num_samples
    draws = truth + math.sqrt(noise) * random.standard_normal(truth.shape)
    gain = np.where(ring > 0, rho * spectrum / (rho * spectrum + noise), 1)
    best = guess + np.fft.ifft2(gain * np.fft.fft2(draws - guess)).real
    error = rms(found.mean - truth)
    assert error < 1.05 * rms(best - truth)
    assert error < 0.8 * min(math.sqrt(noise), rms(guess - truth))
    # Its standard error has the bias in it.
    close(rms(found.stderr), error, rtol=0.05)
    assert rms(np.mean(found.mean - truth, axis=0)) < rms(found.stderr)


def test_the_standard_error_is_larger_where_the_draws_scatter_more(key):
    """The left half has ten times the noise of the right one."""
    x = smooth_map()
    level = jnp.where(jnp.arange(20) < 10, 5.0, 0.5)[None, :, None]
    explain = sj.smoothgrad_toward(identity, weights, level, num_samples=64, reduction=ESTIMATE)
    stderr = jax.jit(explain)(key, 0 * x, x).stderr
    assert 5 < rms(stderr[:, :10]) / rms(stderr[:, 10:]) < 20


# Layouts, and what composes


@pytest.mark.parametrize(
    ("axes", "channel_axis"),
    [
        pytest.param((0, 2), 1, marks=pytest.mark.slow),
        ((-3, -1), -2),
        pytest.param((2, 0), 1, marks=pytest.mark.slow),
        pytest.param((0, -1), 1, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_any_layout_gives_the_same(axes, channel_axis, key):
    """Of explainers that ignore the noise on x but for a key of their own."""

    def laid_out(move, **settings):
        noise = sj.stochastic(lambda key, p, x: move(x + 3 * jax.random.normal(key, x.shape)))
        explain = sj.smoothgrad_toward(noise, lambda p, x: move(p), 0.0, num_samples=5, **settings)
        return jax.jit(explain)(key, guess, x)

    x, guess = random_map(), random_map(seed=1)
    plain = laid_out(lambda m: m)
    moved = laid_out(lambda m: jnp.moveaxis(m, -1, 1), axes=axes, channel_axis=channel_axis)
    close(jnp.moveaxis(moved, 1, -1), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_grey_map_is_one_channel(key):
    x, guess = random_map((9, 12)), random_map((9, 12), seed=1)
    grey = program(3.0, 5, channel_axis=None)(key, guess, x)
    close(grey, program(3.0, 5)(key, guess[..., None], x[..., None])[..., 0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_channels_without_an_axis_for_them_are_apart(key):
    """Each has its own scale and gain."""
    x, guess = random_map(), random_map(seed=1)
    draw = sj.stochastic(
        lambda key, p, x: x + 3 * jax.random.normal(key, SHAPE)[..., : x.shape[-1]]
    )
    first = sj.stochastic(lambda key, p, x: draw(key, p, x)[..., 0])
    found, alone = (
        jax.jit(sj.smoothgrad_toward(explain, start, 0.0, num_samples=5, channel_axis=None))(
            key, guess, x
        )
        for explain, start in ((draw, weights), (first, lambda p, x: p[..., 0]))
    )
    close(found[..., 0], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "shape", slow_but([(15,), (1,), (2, 1), (16, 3), (5, 4, 6)], (1,), (16, 3))
)
def test_any_sizes(shape, key):
    x, guess = random_map(shape), random_map(shape, seed=1)
    run = program(3.0, 2, axes=tuple(range(len(shape))), channel_axis=None, reduction=ESTIMATE)
    found = run(key, guess, x)
    assert found.mean.shape == found.stderr.shape == shape
    assert np.isfinite(found.mean).all()
    assert (np.asarray(found.stderr) > 0).all()


def test_a_signal_with_channels(key):
    x, guess = random_map((30, 3)), random_map((30, 3), seed=1)
    found = program(3.0, 4, axes=(0,), channel_axis=-1)(key, guess, x)
    close(found.mean(0), np.mean(drawn(3.0, 4)(key, x), (0, 1)), atol=1e-4)


@pytest.mark.parametrize("chunk_size", slow_but([1, 2], 2))
@pytest.mark.slow
def test_any_chunk_size_gives_the_same(chunk_size, key):
    x, guess = random_map(), random_map(seed=1)
    chunked = program(3.0, 5, chunk_size=chunk_size)
    close(chunked(key, guess, x), program(3.0, 5)(key, guess, x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_structure_and_dtypes_are_those_of_the_explainer(key):
    def explain(params, x):
        return {"image": x["image"] ** 2, "half": (x["half"], 3 * x["half"])}

    def guess(params, x):
        return jax.tree.map(lambda m: m.astype(jnp.float32), explain(params, x))

    x = {"image": random_map(), "half": random_map((8, 6, 1), dtype=jnp.bfloat16)}
    x["half"] = x["half"].astype(jnp.float16)
    run = sj.smoothgrad_toward(explain, guess, 0.5, num_samples=3, reduction=ESTIMATE)
    found = jax.jit(run)(key, None, x)
    assert jax.tree.map(jnp.result_type, found.mean) == jax.tree.map(
        jnp.result_type, explain(None, x)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found.stderr)} == {jnp.dtype(jnp.float32)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


@pytest.mark.slow
def test_integer_leaves_pass(key):
    """Their gradient has no numbers."""

    def score(params, x):
        return jnp.sum(jnp.take(params, x["label"]) * jax.nn.relu(x["image"]))

    x = {"image": random_map(), "label": jnp.int32(2)}
    explain, guess = sj.saliency(score), sj.smoothdiff(score, 0.5)
    found = sj.smoothgrad_toward(explain, guess, 0.5, num_samples=2)(key, jnp.arange(4.0), x)
    assert found["image"].shape == SHAPE
    assert found["label"].dtype == jax.dtypes.float0


@pytest.mark.slow
def test_it_composes(key):
    """Inside NoiseGrad, whose weights the guess sees; batches of examples; derivatives."""
    x = random_map()

    def score(params, x):
        return jnp.sum(params * jax.nn.relu(x))

    toward = sj.smoothgrad_toward(sj.saliency(score), sj.smoothdiff(score, 1.0), 1.0, num_samples=2)
    outside = sj.noisegrad(toward, 0.1, num_samples=2)
    params = jnp.ones(SHAPE)
    xs = jnp.stack([x, x + 1])
    batch = jax.jit(jax.vmap(outside, (None, None, 0)))(key, params, xs)
    close(batch[1], jax.jit(outside)(key, params, xs[1]), rtol=1e-3, atol=1e-4)

    @jax.jit
    def slope(params):
        def total(params):
            return jnp.sum(jnp.sin(toward(key, params, x)))

        return jnp.sum(jax.grad(total)(params) * x), [
            total(params + step * x) for step in (-1e-2, 1e-2)
        ]

    found, (behind, ahead) = slope(params)
    close(found, (ahead - behind) / 2e-2, rtol=2e-2)


@pytest.mark.parametrize("level", slow_but([0.0, 0.5], 0.0))
@pytest.mark.slow
def test_derivatives_are_finite(level, key):
    """Without noise, for a guess that is right, and for zeros too."""

    @jax.jit
    @jax.grad
    def gradient(x, guess):
        toward = sj.smoothgrad_toward(identity, weights, level, num_samples=2, reduction=ESTIMATE)
        found = toward(key, guess, x)
        return jnp.sum(found.mean) + jnp.sum(found.stderr)

    x = random_map()
    for start, guess in ((x, x), (x, 0 * x), (0 * x, x), (0 * x, 0 * x)):
        assert np.isfinite(gradient(start, guess)).all()


def test_errors_say_what_to_type(key):
    x = random_map()

    def call(explain=identity, guess=identity, x=x, **settings):
        return sj.smoothgrad_toward(explain, guess, 0.1, **settings)(key, None, x)

    with pytest.raises(TypeError, match="guess must be a function"):
        call(guess=x)
    with pytest.raises(ValueError, match=r"reduction must be mean\(\) or mean_and_stderr\(\)"):
        call(reduction=reductions.variance())
    with pytest.raises(ValueError, match="give it to smoothgrad"):
        call(tolerance=0.1)
    with pytest.raises(ValueError, match="must be at least 2"):
        call(num_samples=1)
    with pytest.raises(ValueError, match=r"channel_axis 1 is among axes \(0, 1\)"):
        call(axes=(0, 1), channel_axis=1)
    with pytest.raises(ValueError, match="channel_axis=None"):
        call(x=x[..., 0])
    with pytest.raises(ValueError, match="maps like those of explain"):
        call(guess=lambda params, x: x[..., :1])
    with pytest.raises(ValueError, match="maps like those of explain"):
        call(guess=lambda params, x: (x,))
    with pytest.raises(ValueError, match=r"\(channels, H, W\)"):
        call(x=jnp.moveaxis(x, -1, 0))
    with pytest.raises(TypeError, match="real floating-point"):
        call(explain=lambda params, x: x.astype(int))
    inner = sj.smoothgrad(identity, 0.1, num_samples=2, reduction=ESTIMATE)
    with pytest.raises(TypeError, match="an Estimate"):
        call(guess=inner)
    with pytest.raises(TypeError, match="an Estimate"):
        call(explain=inner)
