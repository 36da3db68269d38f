"""The noise itself, seen through the identity explainer with `stack()`."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but
from scipy import stats

import smoothjax as sj
from smoothjax import _box_muller, reductions
from smoothjax.noise import box_muller


def draws_of(argument, sigma, num_samples=2000, smooth=sj.smoothgrad, seed=0, **options):
    """The perturbed arguments themselves, stacked."""
    see = smooth(
        lambda argument: argument,
        sigma,
        argnum=0,
        num_samples=num_samples,
        reduction=reductions.stack(),
        chunk_size=num_samples,
        **options,
    )
    return see(jax.random.key(seed), argument)


def test_noise_is_normal_independent_and_of_the_given_level():
    x = {"a": jnp.full((2, 3), 5.0), "b": jnp.zeros(4)}
    draws = draws_of(x, 0.5)
    eps = np.concatenate(
        [((draws[k] - x[k][None]) / 0.5).reshape(2000, -1) for k in ("a", "b")], axis=1
    )
    assert stats.kstest(eps.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(eps.mean(0), np.zeros(10), atol=5 / np.sqrt(2000))
    np.testing.assert_allclose(eps.var(0), np.ones(10), rtol=5 * np.sqrt(2 / 2000))
    off_diagonal = np.corrcoef(eps.T) - np.eye(10)
    assert np.abs(off_diagonal).max() < 5 / np.sqrt(2000)
    along_draws = np.mean(eps[1:] * eps[:-1], axis=0)
    assert np.abs(along_draws).max() < 5 / np.sqrt(2000)


def test_parts_of_large_leaves_are_independent():
    x = {"a": jnp.zeros((50, 60)), "b": jnp.zeros(7), "c": jnp.zeros(2100)}
    draws = draws_of(x, 1.0, num_samples=300)
    everything = np.concatenate([draws[k].reshape(300, -1) for k in x], axis=1)
    assert np.unique(everything).size > 0.8 * everything.size  # float32 has few numbers
    for name in ("a", "c"):
        flat = draws[name].reshape(300, -1)
        first, second = np.asarray(flat[:, :1024]), np.asarray(flat[:, 1024:2048])
        correlation = np.corrcoef(first.ravel(), second.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(first.size)


@pytest.mark.parametrize(
    "sampler", slow_but([box_muller, jax.random.normal, jax.random.rademacher], box_muller)
)
def test_the_documented_keys_give_the_noise(sampler):
    """fold_in(key, draw), split; fold_in(noise key, leaf); then a number for each position."""
    x = (jnp.zeros((2, 3)), jnp.zeros(7), jnp.zeros((60, 50)), jnp.zeros(()))
    draws = draws_of(x, 1.0, num_samples=2, seed=5, sampler=sampler)
    noise_key, _ = jax.random.split(jax.random.fold_in(jax.random.key(5), 1))
    for i, leaf in enumerate(x):
        want = sampler(jax.random.fold_in(noise_key, i), leaf.shape, jnp.float32)
        np.testing.assert_allclose(draws[i][1], want, rtol=1e-5, atol=1e-6)


def test_the_documented_keys_of_weights_and_of_what_is_explained():
    """Weights are times 1 + sigma eps; the other half of the split key is the explainer's."""
    params = jnp.linspace(1.0, 2.0, 3000)
    see = sj.stochastic(lambda key, params: (params, jax.random.normal(key)))
    stacked = sj.noisegrad(see, 0.3, num_samples=2, reduction=reductions.stack())
    drawn, seen = stacked(jax.random.key(5), params)
    noise_key, inner_key = jax.random.split(jax.random.fold_in(jax.random.key(5), 1))
    eps = box_muller(jax.random.fold_in(noise_key, 0), params.shape)
    np.testing.assert_allclose(drawn[1], params * (1 + 0.3 * eps), rtol=1e-5)
    np.testing.assert_allclose(seen[1], jax.random.normal(inner_key), rtol=1e-5)


def test_small_leaves_draw_no_more_than_they_need_and_large_ones_in_their_shape():
    def asked(*shapes, **options):
        seen = []

        def sampler(key, shape, dtype):
            seen.append(shape)
            return jax.random.normal(key, shape, dtype)

        draws_of(tuple(map(jnp.zeros, shapes)), 1.0, num_samples=2, sampler=sampler, **options)
        return set(seen)

    assert asked((3,), (10,)) == {(10,)}
    assert asked((3,), (2, 5), (50, 60)) == {(10,), (50, 60)}
    assert asked((3,), (2, 5), (50, 60), where=(True, False, False)) == {(10,)}


def test_small_leaves_draw_the_same_numbers_on_gpus_and_tpus_without_a_loop(monkeypatch, key):
    noisy = sj.noisegrad(lambda params: params, 0.3, num_samples=1)
    params = [jnp.linspace(1.0, 2.0, size) for size in (3, 70, 9000, 64)]
    want = noisy(key, params)
    traced = jax.jit(noisy).trace(key, params)
    loops = {p: "while" in traced.lower(lowering_platforms=(p,)).as_text() for p in ("cpu", "tpu")}
    assert loops == {"cpu": True, "tpu": False}
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *blocks, cpu, default: default(*blocks)
    )
    for a, b in zip(noisy(key, params), want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_positions_beyond_32_bits_are_told_apart(monkeypatch):
    """With words of 4 bits, since no array of 2**32 numbers fits here."""
    monkeypatch.setattr(_box_muller, "_WORD", 2**4)
    for shape, wraps in [((3, 2, 4, 2), True), ((5, 3, 3), True), ((2, 8), False), ((), False)]:
        words = np.stack([np.asarray(w).ravel() for w in _box_muller._position(shape)], axis=1)
        assert len(np.unique(words, axis=0)) == math.prod(shape)
        assert words.max(initial=0) < 2**4
        assert words[:, 0].any() == wraps
    np.testing.assert_array_equal(_box_muller._position((2, 8))[1].ravel(), np.arange(16))


def test_rules_do_not_see_what_is_left_out():
    x = {"image": jnp.arange(12.0).reshape(2, 2, 3), "scalar": jnp.float32(2.0)}
    where = {"image": True, "scalar": False}
    for sigma in (sj.relative(0.1), sj.adaptive((-1.0, np.array([20.0, 30.0, 40.0])))):
        draws = draws_of(x, sigma, num_samples=2, where=where)
        assert np.all(draws["scalar"] == 2.0)
        assert np.all(draws["image"] != x["image"][None])


def test_multiplicative_noise_has_mean_one():
    w = jnp.array([2.0, -3.0, 0.0])
    draws = draws_of(w, 0.2, smooth=sj.noisegrad)
    np.testing.assert_allclose(draws.mean(0), w, atol=5 * 0.2 * 3 / np.sqrt(2000))
    np.testing.assert_allclose(draws.std(0), 0.2 * jnp.abs(w), rtol=5 / np.sqrt(4000))


def test_leaves_of_equal_shape_draw_different_noise():
    a, b = draws_of((jnp.zeros(5), jnp.zeros(5)), 1.0, num_samples=1)
    assert not np.any(a == b)


def test_noise_of_a_leaf_does_not_move_when_others_are_left_out():
    x = {"a": jnp.zeros(3), "b": jnp.zeros(3), "c": 7}
    everything = draws_of(x, 1.0, num_samples=4)
    only_b = draws_of(x, 1.0, num_samples=4, where={"a": False, "b": True, "c": False})
    np.testing.assert_array_equal(only_b["b"], everything["b"])
    np.testing.assert_array_equal(only_b["a"], np.zeros((4, 3)))


def test_only_floating_point_arrays_are_perturbed():
    key = jax.random.key(1)
    x = {
        "f": jnp.ones(3),
        "i": jnp.arange(3),
        "b": np.array([True]),
        "n": None,
        "py": 2.5,
        "key": key,
    }
    seen = []

    def explain(x):
        seen.append({name: x[name] for name in ("i", "b", "n", "py", "key")})
        return x["f"]

    sj.smoothgrad(explain, 0.1, argnum=0, num_samples=2)(jax.random.key(0), x)
    assert seen[0]["i"] is x["i"]
    assert seen[0]["b"] is x["b"]
    assert seen[0]["py"] == 2.5
    assert seen[0]["key"] is key


def test_functions_inside_an_argument_pass_untouched():
    model = {"w": jnp.ones(3), "activation": jnp.tanh}

    def explain(model, x):
        return model["activation"](model["w"] * x)

    noisy = sj.noisegrad(explain, 0.1, num_samples=2)(jax.random.key(0), model, jnp.ones(3))
    assert noisy.shape == (3,)


def test_half_precision_noise_is_drawn_in_float32():
    """In bfloat16, 256 + 0.6 eps is one of few values; the noise must be rounded only once."""
    wide = draws_of(jnp.full(1000, 256.0, jnp.float32), 0.6, num_samples=1)
    half = draws_of(jnp.full(1000, 256.0, jnp.bfloat16), 0.6, num_samples=1)
    np.testing.assert_array_equal(half, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    "sigma",
    [
        0.3,
        np.float32(0.3),
        jnp.full((4,), 0.3),
        jnp.full((3, 1), 0.3),
        lambda x: 0.3,
        lambda x: jax.tree.map(lambda leaf: 0.3 * jnp.ones_like(leaf), x),
    ],
    ids=["number", "numpy", "row", "column", "function", "function to a tree"],
)
def test_grammar_of_sigma_on_an_array(sigma):
    np.testing.assert_allclose(
        draws_of(jnp.zeros((3, 4)), sigma, num_samples=2),
        draws_of(jnp.zeros((3, 4)), 1.0, num_samples=2) * 0.3,
        rtol=1e-6,
    )


def test_sigma_may_be_a_pytree_prefix():
    x = {"a": (jnp.zeros(3), jnp.zeros(2)), "b": jnp.zeros((2, 2))}
    unit = draws_of(x, 1.0, num_samples=2)
    got = draws_of(x, {"a": 0.5, "b": jnp.array([0.0, 2.0])}, num_samples=2)
    np.testing.assert_allclose(got["a"][0], 0.5 * unit["a"][0], rtol=1e-6)
    np.testing.assert_allclose(got["a"][1], 0.5 * unit["a"][1], rtol=1e-6)
    np.testing.assert_allclose(got["b"], jnp.array([[[0.0, 2.0]]]) * unit["b"], rtol=1e-6)


@pytest.mark.slow
def test_sigma_may_be_traced():
    def mean_draw(sigma):
        return sj.smoothgrad(lambda x: x, sigma, argnum=0, num_samples=3)(
            jax.random.key(0), jnp.zeros(4)
        )

    sigmas = jnp.array([0.0, 0.5, 2.0])
    np.testing.assert_allclose(
        jax.jit(jax.vmap(mean_draw))(sigmas),
        jnp.stack([mean_draw(s) for s in (0.0, 0.5, 2.0)]),
        rtol=3e-7,  # to the order of a sum of three: on JAX 0.9 they differ in a last bit
    )


def test_relative_is_a_fraction_of_each_leafs_range():
    x = {"a": jnp.array([-1.0, 3.0]), "b": jnp.array([10.0, 10.5, 10.0]), "i": jnp.arange(3)}
    levels = sj.relative(0.25)(x)
    assert (levels["a"], levels["b"]) == (1.0, 0.125)
    np.testing.assert_allclose(
        draws_of(x, sj.relative(0.25), num_samples=3, where=True)["a"] - x["a"][None],
        draws_of(x, 1.0, num_samples=3)["a"] - x["a"][None],
        rtol=1e-5,
        atol=1e-6,
    )


def test_relative_under_vmap_takes_the_range_of_each_example():
    xs = jnp.array([[0.0, 1.0], [0.0, 10.0]])
    np.testing.assert_allclose(jax.vmap(sj.relative(0.1))(xs), [0.1, 1.0])


def test_adaptive_is_the_formula():
    x, c = jnp.array([0.1, 0.5, 0.8, 0.0, 1.0, -1.0, 2.0]), 0.95
    # sqrt(2) erfinv(c) is the two-sided normal quantile
    truth = np.clip(np.minimum(x, 1 - x), 0, None) / stats.norm.ppf((1 + c) / 2)
    np.testing.assert_allclose(sj.adaptive((0.0, 1.0), c)(x), truth, rtol=1e-5)


def test_adaptive_broadcasts_bounds_per_channel():
    x = jnp.zeros((2, 2, 3))
    lo, hi = np.array([-1.0, -2.0, -3.0]), np.array([4.0, 1.0, 3.0])
    level = sj.adaptive((lo, hi), 0.95)(x)
    np.testing.assert_allclose(level[1, 0], np.array([1.0, 1.0, 3.0]) / stats.norm.ppf(0.975), 1e-5)


def test_by_path_selects_leaves_by_their_path():
    params = {"layer": {"kernel": jnp.zeros(3), "bias": jnp.zeros(3)}, "head": [jnp.zeros(3)]}
    seen = []
    chosen = sj.by_path(lambda path: seen.append(path) or path.endswith("kernel"))
    draws = draws_of(params, 1.0, num_samples=2, where=chosen)
    assert sorted(set(seen)) == ["head/0", "layer/bias", "layer/kernel"]
    assert np.all(draws["layer"]["kernel"] != 0)
    assert not np.any(draws["layer"]["bias"])
    assert not np.any(draws["head"][0])


def test_where_may_be_a_function_of_the_argument():
    x = (jnp.zeros(3), jnp.zeros((2, 2)))
    matrices = functools.partial(jax.tree.map, lambda leaf: leaf.ndim == 2)
    vector, matrix = draws_of(x, 1.0, num_samples=2, where=matrices)
    assert not np.any(vector)
    assert np.all(matrix != 0)


@jax.tree_util.register_pytree_node_class
class Callable:
    """A module in the manner of Equinox: callable, and a pytree."""

    def __init__(self, weight):
        self.weight = weight

    def __call__(self, x):
        raise AssertionError("a module that serves as a mask or level must not be called")

    def tree_flatten(self):
        return (self.weight,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(*children)


def test_a_callable_module_is_a_pytree_of_levels_or_masks():
    module = Callable({"a": jnp.zeros(3), "b": jnp.zeros(3)})
    draws = draws_of(module, Callable(0.5), 2, where=Callable({"a": True, "b": False}))
    assert np.all(draws.weight["a"] != 0)
    assert not np.any(draws.weight["b"])


BAD_SETTINGS = [
    ({"sigma": -0.1}, ValueError, "sigma must not be negative, or NaN; got -0.1"),
    ({"sigma": 10**400}, TypeError, "sigma must be a real number or array; got 1000"),
    ({"sigma": "0.1"}, TypeError, "sigma must be a number, array, pytree or function; got '0.1'"),
    ({"sigma": None}, TypeError, "sigma must be a number, array, pytree or function; got None"),
    ({"sigma": True}, TypeError, "sigma must be a real number or array; got True"),
    ({"sigma": 1j}, TypeError, "sigma must be a real number or array; got 1j"),
    ({"sigma": np.nan}, ValueError, "sigma must not be negative, or NaN; got nan"),
    ({"sigma": jnp.float32(-0.1)}, ValueError, "sigma must not be negative"),
    ({"sigma": np.array([0.1, -0.1])}, ValueError, "sigma must not be negative"),
    ({"sigma": jax.random.key(0)}, TypeError, "sigma must be a real number"),
    ({"where": 1}, TypeError, "`where` holds bools.*got 1"),
    ({"where": jnp.array([True, False])}, TypeError, "some elements.*zeros as sigma"),
    ({"where": "kernel"}, TypeError, "`where` holds bools"),
    ({"sampler": 3}, TypeError, "sampler must be a function"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_SETTINGS)
@pytest.mark.parametrize("smooth", [sj.smoothgrad, sj.noisegrad])
def test_bad_settings_are_refused_when_building(smooth, options, error, message):
    with pytest.raises(error, match=message):
        smooth(lambda params, x: x, **options)


BAD_RULES = [
    (
        lambda: sj.relative(-0.1),
        ValueError,
        "(?s)level must not be negative, or NaN; got -0.1.*in relative",
    ),
    (lambda: sj.relative("a"), TypeError, "level must be a real number"),
    (lambda: sj.relative(10**400), TypeError, "level must be a real number"),
    (lambda: sj.relative(None), TypeError, "level must be a real number"),
    (lambda: sj.adaptive((None, 1.0)), ValueError, "pair .* of real numbers"),
    (lambda: sj.adaptive("01"), ValueError, "pair .* of real numbers"),
    (lambda: sj.adaptive((np.zeros(2), np.ones(3))), ValueError, "broadcast to each other"),
    (lambda: sj.adaptive((0.0, 1.0), "0.95"), TypeError, "confidence must be a number like 0.95"),
    (lambda: sj.adaptive((0.0, 1.0), np.array([0.5, 0.9])), TypeError, "confidence must be a num"),
    (lambda: sj.adaptive((0.0, 1.0), 0.99999999), ValueError, "confidence must be inside"),
    (lambda: sj.adaptive(1.0), ValueError, r"bounds must be a pair \(lo, hi\) of real.*Got 1.0"),
    (lambda: sj.adaptive(None), ValueError, "pair .* of real numbers.*Got None"),
    (lambda: sj.adaptive((0.0, 1.0, 2.0)), ValueError, r"Got \(0.0, 1.0, 2.0\)"),
    (lambda: sj.adaptive({"a": 1.0}), ValueError, "pytree prefix of pairs; of .*Got {'a': 1.0}"),
    (lambda: sj.adaptive({"a": (1.0, 0.0)}), ValueError, "bounds must have low < high everywhere"),
    (lambda: sj.adaptive(([0, 0, 0], [1, 1, 1])), ValueError, r"type \(jnp.asarray\(lo\), jnp"),
    (lambda: sj.adaptive((1.0, 1.0)), ValueError, "bounds must have low < high everywhere"),
    (lambda: sj.adaptive((0.0, np.array([1.0, -1.0]))), ValueError, "low < high everywhere"),
    (lambda: sj.adaptive((0.0, np.nan)), ValueError, "low < high everywhere"),
    (lambda: sj.adaptive((0.0, 1.0), 1.0), ValueError, "confidence must be inside .* got 1.0"),
    (lambda: sj.adaptive((0.0, 1.0), 95), ValueError, "confidence must be inside .* got 95"),
    (lambda: sj.adaptive((0.0, 1.0), np.nan), ValueError, "confidence must be inside"),
    (lambda: sj.by_path("kernel"), TypeError, "(?s)predicate must be a function.*in by_path"),
]


@pytest.mark.parametrize(("build", "error", "message"), BAD_RULES)
def test_bad_rules_are_refused_when_building(build, error, message):
    with pytest.raises(error, match=message):
        build()


BAD_CALLS = [
    (
        jnp.arange(3, dtype=jnp.int32),
        {},
        TypeError,
        "floating-point arrays are needed.*int32.*astype",
    ),
    (np.zeros((2, 2), np.uint8), {}, TypeError, "uint8"),
    (3.0, {}, TypeError, r"holds \['float'\]"),
    ((), {}, TypeError, r"holds \[\]"),
    (jnp.ones(3), {"sigma": jnp.ones(2)}, ValueError, r"sigma of shape \(2,\) does not broadcast"),
    (jnp.ones(3), {"sigma": jnp.ones((2, 3))}, ValueError, r"\(2, 3\) does not broadcast"),
    (jnp.ones(3), {"sigma": {"a": 1.0}}, ValueError, "sigma must be one value or a pytree prefix"),
    (jnp.ones(2), {"sigma": [0.1, 0.2]}, ValueError, r"sigma must be.*for an array of .* jnp.as"),
    (
        jnp.ones(2),
        {"sigma": sj.adaptive(([0, 1], [1, 2]))},
        ValueError,
        r"bounds, pairs \(lo, hi\) of numbers or arrays, must.*type jnp.asarray\(\[...\]\)",
    ),
    ({"a": jnp.ones(3)}, {"where": {"b": True}}, ValueError, "where must be one value or a pytree"),
    ({"a": jnp.ones(3)}, {"where": False}, ValueError, "selects no floating-point leaf.*'a'"),
    ({"a": jnp.ones(3), "i": 1}, {"where": {"a": False, "i": True}}, ValueError, "selects no"),
    (jnp.ones(3), {"where": lambda x: 1.0}, TypeError, "`where` holds bools"),
    (jnp.ones(3, jnp.complex64), {}, TypeError, "complex.*Split it"),
    (jnp.ones(1), {"sigma": sj.relative(0.1)}, ValueError, "fraction of max - min.*units"),
    (jnp.ones(3), {"sigma": sj.adaptive((jnp.zeros(2), 1.0))}, ValueError, "lower bound of shape"),
    (jnp.ones(3), {"sigma": lambda x: "a"}, TypeError, "sigma must be a real number or array"),
    (
        jnp.ones(3),
        {"sigma": lambda x: -1.0},
        ValueError,
        "sigma must not be negative, or NaN; got -1.0",
    ),
    (jnp.ones(3), {"sampler": lambda key, shape, dtype: [0.0] * 3}, TypeError, "real numbers"),
    (
        jnp.ones(3),
        {"sampler": lambda key, shape, dtype: jnp.ones(shape, jnp.complex64)},
        TypeError,
        "sampler.*array of real numbers .* got .*complex64",
    ),
    (
        jnp.ones(3),
        {"sampler": lambda key, shape, dtype: jnp.zeros(2)},
        TypeError,
        "sampler.*shape",
    ),
]


@pytest.mark.parametrize(("argument", "options", "error", "message"), BAD_CALLS)
def test_what_does_not_fit_the_argument_is_refused(argument, options, error, message):
    smooth = sj.smoothgrad(lambda x: x, **{"sigma": 0.1, "argnum": 0, **options})
    with pytest.raises(error, match=message):
        smooth(jax.random.key(0), argument)


def test_complex_leaves_may_be_left_out():
    x = {"c": jnp.ones(2, jnp.complex64), "f": jnp.ones(2)}
    draws = draws_of(x, 0.1, num_samples=2, where={"c": False, "f": True})
    np.testing.assert_array_equal(draws["c"], np.ones((2, 2)))


def test_box_muller_is_its_formula():
    """In double precision, of the words that JAX's own threefry makes."""
    key, n = jax.random.key(3), 50_000
    words = np.asarray(jax.random.key_data(jax.random.split(key, n)))
    u = ((words[:, 0] >> 1) + 0.5) / 2**31
    v = words[:, 1].astype(np.int32) / 2**32
    want = np.sqrt(-2 * np.log(u)) * np.sin(np.pi * v)
    got = jax.jit(box_muller, static_argnums=1)(key, (n,))
    np.testing.assert_allclose(got, want, atol=4e-6)


def test_box_muller_is_right_at_the_ends_of_its_words(monkeypatch):
    ends = np.array([0, 1, 2, 3, 2**30, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    first, second = (each.ravel() for each in np.meshgrid(ends, ends))
    monkeypatch.setattr(
        _box_muller, "_threefry2x32", lambda *_: (jnp.asarray(first), jnp.asarray(second))
    )
    u = ((first >> 1) + 0.5) / 2**31
    v = second.astype(np.int32) / 2**32
    want = np.sqrt(-2 * np.log(u)) * np.sin(np.pi * v)
    got = box_muller(jax.random.key(0), first.shape)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    assert np.abs(got).max() == pytest.approx(np.sqrt(2 * np.log(2**32)), rel=1e-5)


@pytest.mark.parametrize(
    ("sampler", "impl"),
    [
        pytest.param(jax.random.normal, "threefry2x32", marks=pytest.mark.slow),
        (box_muller, "threefry2x32"),
        pytest.param(box_muller, "rbg", marks=pytest.mark.slow),
    ],
)
def test_samplers_are_standard_normal(sampler, impl):
    """In the bulk, in the moments, in the tails and jointly, on two million numbers of many keys.

    The test is one for JAX's own sampler too: where that passes, so must ours.
    """
    rows, n = 2048, 2**21
    keys = jax.random.split(jax.random.key(1, impl=impl), rows)
    x = jax.jit(jax.vmap(lambda key: sampler(key, (n // rows,), jnp.float32)))(keys)
    x = np.asarray(x, np.float64)

    flat = x.ravel()
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    for order in range(1, 7):
        mean, square = stats.norm.moment(order), stats.norm.moment(2 * order)
        error = np.sqrt((square - mean**2) / n)
        assert abs(np.mean(flat**order) - mean) < 4 * error, order

    # Bins of equal steps in the logarithm of the tail, to five expected numbers beyond the last.
    tail = stats.norm.isf(np.geomspace(5 / n, 0.3, 40))
    edges = np.concatenate([[-np.inf], -tail, tail[::-1], [np.inf]])
    counts = np.bincount(np.searchsorted(edges, flat) - 1, minlength=edges.size - 1)
    expected = n * np.diff(stats.norm.cdf(edges))
    assert stats.chisquare(counts, expected, sum_check=False).pvalue > 1e-3

    # Whether large numbers meet large ones, or signs go together, within a block and between two.
    pairs = [
        (x[:, ::2], x[:, 1::2]),
        (x[:, :512], x[:, 512:]),
        (x[:, :-1], x[:, 1:]),
        (x[:-1], x[1:]),
        (x[: rows // 2], x[rows // 2 :]),
    ]
    for a, b in pairs:
        for of in (np.array, np.abs, np.sign, np.square):
            correlation = np.corrcoef(of(a).ravel(), of(b).ravel())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(a.size)
    # And by a test that sees any dependence: the quartiles of two neighbours fall evenly.
    quartile = np.searchsorted(stats.norm.ppf([0.25, 0.5, 0.75]), x)
    together = np.bincount((4 * quartile[:, ::2] + quartile[:, 1::2]).ravel(), minlength=16)
    assert stats.chisquare(together).pvalue > 1e-3


def test_box_muller_keeps_its_promises_of_shape_and_dtype():
    key = jax.random.key(2)
    sample = jax.jit(box_muller, static_argnums=(1, 2))
    many = sample(key, (10,))
    np.testing.assert_array_equal(sample(key, (7,)), many[:7])
    np.testing.assert_array_equal(
        sample(key, (2, 5), jnp.bfloat16).ravel(), many.astype("bfloat16")
    )
    assert sample(key, ()) == many[0]


def test_box_muller_on_leaves_keys_and_draws_is_independent():
    x = {"a": jnp.zeros((3, 700)), "b": jnp.zeros(2100)}
    draws = draws_of(x, 1.0, num_samples=200, sampler=box_muller)
    a, b = (np.asarray(draws[name]).reshape(200, -1) for name in ("a", "b"))
    for first, second in [(a, b), (a[1:], a[:-1]), (b[:, :1024], b[:, 1024:2048])]:
        for of in (np.array, np.abs):
            correlation = np.corrcoef(of(first).ravel(), of(second).ravel())[0, 1]
            assert abs(correlation) < 5 / np.sqrt(first.size)
    assert stats.kstest(np.concatenate([a, b]).ravel(), "norm").pvalue > 1e-3


def test_missing_and_infinite_values_stay_what_they_are_and_do_not_count():
    x = jnp.array([jnp.nan, 1.0, 3.0, -jnp.inf])
    for sigma in (sj.relative(0.1), sj.adaptive((0.0, 4.0), 0.5)):
        draws = draws_of(x, sigma, num_samples=200)
        np.testing.assert_array_equal(draws[:, 0], np.nan)
        np.testing.assert_array_equal(draws[:, 3], -np.inf)
        want = np.asarray(sigma(jnp.array([1.0, 3.0])))
        np.testing.assert_allclose(draws[:, 1:3].std(0), want * np.ones(2), rtol=0.3)
    assert sj.relative(0.1)(x) == np.float32(0.2)
    assert sj.adaptive((0.0, 4.0))(x)[0] == 0
    for nothing in (jnp.full(3, jnp.nan), jnp.array([jnp.inf, 2.0]), jnp.full(2, -jnp.inf)):
        assert sj.noise.span(nothing) == 0
    column_of_nothing = jnp.array([[1.0, jnp.nan], [3.0, jnp.nan]])
    np.testing.assert_array_equal(sj.noise.span(column_of_nothing, 0), [2.0, 0.0])
    gradient = jax.grad(lambda x: sj.relative(1.0)(x))(x)
    np.testing.assert_array_equal(gradient, [0.0, -1.0, 1.0, 0.0])


def test_a_missing_value_does_not_stop_the_noise_on_others(key):
    """The explained function is linear, so that its map is right under any noise."""

    def imputed(p, x):
        return jnp.sum(p * jnp.where(jnp.isnan(x), 0.0, x))

    p, x = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, jnp.nan, 3.0])
    explain = sj.saliency(imputed)
    for smooth in (sj.smoothgrad(explain), sj.adaptgrad(explain, (0.0, 4.0))):
        np.testing.assert_array_equal(smooth(key, p, x), [1.0, 0.0, 3.0])
    for judge in (
        sj.metrics.max_sensitivity,
        sj.metrics.average_sensitivity,
        sj.metrics.local_lipschitz,
    ):
        assert judge(explain, radius=sj.relative(0.1))(key, p, x) == 0
    assert abs(sj.metrics.infidelity(imputed)(key, p, x, p)) < 1e-9  # p for the missing value, too


def test_a_float_mask_beside_the_data_needs_where(key):
    def masked(p, x):
        return jnp.sum(jax.nn.softmax(x["logit"] + x["mask"]) * jnp.arange(4.0))

    x = {"logit": jnp.arange(4.0), "mask": jnp.array([0.0, 0.0, -1e9, -1e9])}
    explain = sj.saliency(masked)
    message = (
        r"several leaves needs `where`, or a level for each of \['logit', 'mask'\]; where=True"
    )
    for smooth in (
        sj.smoothgrad(explain),
        sj.vargrad(explain),
        sj.squaregrad(explain),
        sj.fusiongrad(explain, sigma_weights=0.0),
        sj.adaptgrad(explain, (-1e9, 10.0)),
    ):
        with pytest.raises(ValueError, match=message):
            smooth(key, {"w": jnp.ones(1)}, x)
    smooth = jax.jit(
        sj.smoothgrad(explain, 0.1, num_samples=400, where={"logit": True, "mask": False})
    )
    want = np.exp(1) / (1 + np.exp(1)) ** 2 * np.array([-1, 1, 0, 0])
    np.testing.assert_allclose(smooth(key, None, x)["logit"], want, atol=5 * 0.01 / np.sqrt(400))


def test_a_level_by_range_of_several_leaves_is_asked_for():
    x = {"image": jnp.arange(4.0), "tab": [jnp.arange(3.0), jnp.array([0.0, 8.0])], "i": 1}
    refused = [
        sj.relative(0.1),
        sj.adaptive((0.0, 1.0)),
        {"image": 0.1, "tab": sj.relative(0.1), "i": 0.0},
    ]
    for sigma in refused:
        with pytest.raises(ValueError, match=r"a level by range.*needs `where`"):
            draws_of(x, sigma, num_samples=2)
        draws_of(x, sigma, num_samples=2, where=True)
    alone = {"image": jnp.arange(4.0), "tokens": jnp.arange(3), "mask": np.array([True])}
    draws_of(alone, sj.relative(0.1), num_samples=2)
    each = {"image": sj.relative(0.1), "tab": [sj.adaptive((-1.0, 4.0)), 0.5], "i": 0.0}
    draws = draws_of(x, each, num_samples=2000)
    np.testing.assert_allclose(draws["image"].std(0), np.full(4, 0.3), rtol=5 / np.sqrt(4000))
    np.testing.assert_allclose(draws["tab"][1].std(0), np.full(2, 0.5), rtol=5 / np.sqrt(4000))
    for sigma in (0.1, lambda x: 0.1):  # what is no range is as it was
        draws_of(x, sigma, num_samples=2)


def test_bounds_may_be_those_of_each_leaf(key):
    x = {"image": jnp.full((2, 3), 0.25), "tab": (jnp.array([-1.0, 0.5]), jnp.zeros(2))}
    explain = sj.saliency(lambda p, x: x["image"].sum() + x["tab"][0].sum())
    maps = sj.adaptgrad(explain, bounds={"image": (0.0, 1.0), "tab": (-1.0, 2.0)})(key, None, x)
    np.testing.assert_array_equal(maps["image"], np.ones((2, 3)))
    lows, highs = np.zeros(3), np.array([0.5, 1.0, 2.0])
    bounds = {"image": (lows, highs), "tab": ([-1, 2], (jnp.full(2, -3.0), 3.0))}
    got = sj.adaptive(bounds)(x)
    z = stats.norm.ppf(0.975)
    np.testing.assert_allclose(got["image"], np.full((2, 3), 0.25) / z, rtol=1e-5)
    np.testing.assert_allclose(got["tab"][0], np.array([0.0, 1.5]) / z, rtol=1e-5)
    np.testing.assert_allclose(got["tab"][1], np.full(2, 3.0) / z, rtol=1e-5)
    pairs = sj.adaptive(((0.0, 1.0), (-1.0, 2.0)))((jnp.full(2, 0.5), jnp.full(2, 0.5)))
    np.testing.assert_allclose(pairs[1], np.full(2, 1.5) / z, rtol=1e-5)


def test_tabular_data_have_a_level_for_each_feature(key):
    def two_units(p, x):  # age, income
        return jnp.tanh((x[0] - 40) / 5) + x[1] / 1e5

    x = jnp.array([40.0, 50_000.0])
    rows = np.array([[39.9, 20_000.0], [40.0, np.nan], [40.2, 90_000.0], [np.inf, 30_000.0]])
    sigma = sj.relative(0.1, rows)
    np.testing.assert_allclose(sigma(x), [0.03, 7000.0], rtol=1e-4)
    got = sj.smoothgrad(sj.saliency(two_units), sigma)(key, None, x)
    np.testing.assert_allclose(got, [0.2, 1e-5], rtol=1e-3)
    spread = sj.relative(0.1, rows[:3], spread=jnp.nanstd)(x)
    np.testing.assert_allclose(spread, 0.1 * np.nanstd(rows[:3], 0), rtol=1e-3)
    np.testing.assert_allclose(
        sj.relative(0.1, spread=jnp.std)(jnp.arange(4.0)), 0.1 * np.std(np.arange(4.0)), rtol=1e-6
    )


def test_examples_may_be_a_pytree_and_need_no_where():
    x = {"image": jnp.zeros((2, 2)), "age": jnp.float32(3.0), "token": jnp.arange(2)}
    many = {
        "image": np.stack([np.zeros((2, 2), np.uint8), np.full((2, 2), 10, np.uint8)]),
        "age": jnp.array([1.0, 5.0], jnp.bfloat16),
        "token": np.zeros((2, 2), int),
    }
    levels = sj.relative(0.5, many)(x)
    np.testing.assert_array_equal(levels["image"], np.full((2, 2), 5.0))
    assert (levels["age"], levels["token"]) == (2.0, 0.0)
    assert np.all(draws_of(x, sj.relative(0.5, many), num_samples=2)["age"] != 3.0)
    traced = jax.jit(lambda rows, x: sj.relative(0.5, rows)(x))(many["image"], x["image"])
    np.testing.assert_array_equal(traced, levels["image"])


EXAMPLES = np.arange(6.0).reshape(3, 2)
BAD_EXAMPLES = [
    (np.ones(2), {}, "each of the examples has shape .., and the argument has .2,..*leading axis"),
    (EXAMPLES.T, {}, r"has shape \(3,\), and the argument has \(2,\)"),
    (EXAMPLES[:1], {}, "examples must be stacked.*at least 2"),
    ([[1.0, 2.0], [3.0, 4.0]], {}, r"examples must be arrays.*jnp.asarray\(values\)"),
    (np.array([[1.0, np.nan], [2.0, 3.0]]), {"spread": jnp.std}, "must be finite.*nanstd"),
    (EXAMPLES, {"spread": lambda v, axis: -jnp.ones(2)}, "must not be negative"),
    (EXAMPLES, {"spread": "std"}, "spread must be a function"),
    ({"a": EXAMPLES}, {}, "must be one value or a pytree prefix"),
]


@pytest.mark.parametrize(("examples", "options", "message"), BAD_EXAMPLES)
def test_examples_that_do_not_fit_are_refused(examples, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        sj.relative(0.1, examples, **options)(jnp.ones(2))


def test_a_data_frame_of_examples_says_what_to_type():
    pandas = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"got a DataFrame.*to_numpy"):
        sj.relative(0.1, pandas.DataFrame(EXAMPLES))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPUs need it")
def test_weights_are_perturbed_once_not_anew_for_each_pixel(key):
    """What XLA fuses into the loops over pixels it computes in each; no branch is ever fused."""
    weights = jnp.ones((1, 2000))  # more than one block
    explain = jax.grad(lambda w, x: jnp.sum(jnp.tanh(w * x)), argnums=1)
    compiled = jax.jit(sj.noisegrad(explain, 0.1)).lower(key, weights, jnp.ones((9, 1))).compile()
    assert " conditional(" in compiled.as_text()


@pytest.mark.slow
def test_empty_leaves_change_nothing(key):
    alone = draws_of({"a": jnp.zeros(3, np.float32)}, 1.0, num_samples=2)["a"]
    with jax.enable_x64():
        for dtype in (np.float32, np.float64):  # the second is drawn apart
            x = {"a": jnp.zeros(3, np.float32), "b": jnp.zeros((0, 2), dtype)}
            got = draws_of(x, 1.0, num_samples=2)
            np.testing.assert_array_equal(got["a"], alone)
            assert got["b"].shape == (2, 0, 2)
    assert draws_of({"b": jnp.zeros((0, 2))}, 1.0, num_samples=2)["b"].shape == (2, 0, 2)


@pytest.mark.parametrize("size", [1, 3000])
def test_noise_has_the_sign_of_what_the_sampler_draws(size):
    """Of one block and of several: only the latter are perturbed in a branch."""
    got = draws_of(jnp.zeros(size), 0.5, num_samples=2, sampler=lambda key, s, d: jnp.ones(s, d))
    np.testing.assert_array_equal(got, np.full((2, size), 0.5))
