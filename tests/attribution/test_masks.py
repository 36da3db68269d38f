"""What holds for all methods that query a score behind masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax.attribution import hsic, kernel_shap, lime, occlusion, rise, sobol
from smoothjax.attribution._masks import Map, _mix, cells_of
from smoothjax.spectral import lowpass

SHAPE = (13, 9, 2)
W = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
X = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)


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
    "lime": functools.partial(lime, num_samples=20, grid=(2, 3)),
    "kernel_shap": functools.partial(kernel_shap, num_samples=20, grid=(2, 3)),
}
TABULAR = {
    "occlusion": functools.partial(occlusion, patch=1, stride=1, axes=(0,)),
    "rise": functools.partial(rise, num_samples=20, grid=None, axes=(0,)),
    "sobol": functools.partial(sobol, num_designs=10, grid=None, axes=(0,)),
    "hsic": functools.partial(hsic, num_samples=20, grid=None, axes=(0,)),
    "lime": functools.partial(lime, num_samples=20, grid=None, axes=(0,)),
    "kernel_shap": functools.partial(kernel_shap, num_samples=20, grid=None, axes=(0,)),
}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_tabular = pytest.mark.parametrize("method", TABULAR.values(), ids=TABULAR)
each_random = pytest.mark.parametrize("name", ["rise", "sobol", "hsic", "lime", "kernel_shap"])


def call(explain, key, *args):
    return explain(key, *args) if sj.is_stochastic(explain) else explain(*args)


def run(explain, key, *args):
    return call(jax.jit(explain), key, *args)


def test_only_random_methods_take_a_key():
    stochastic = {name: sj.is_stochastic(method(linear)) for name, method in METHODS.items()}
    assert stochastic == {name: name != "occlusion" for name in METHODS}
    assert sj.is_stochastic(occlusion(sj.noisegrad(linear)))
    assert [method(linear).__name__ for method in METHODS.values()] == [
        f"{name}(linear)" for name in METHODS
    ]


@pytest.mark.parametrize("method", slow_but(TABULAR, "occlusion", "sobol"))
@pytest.mark.slow
def test_arrays_of_numpy_in_float64(method, key):
    """As everywhere in JAX, they are float32; warnings are errors here."""
    got = call(method(linear), key, np.ones(4), np.ones(4))
    want = call(method(linear), key, jnp.ones(4), jnp.ones(4))
    np.testing.assert_array_equal(got, want)


@each_method
@pytest.mark.slow
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


@pytest.mark.parametrize("method", slow_but(METHODS, "occlusion", "hsic"))
@pytest.mark.slow
def test_jit_equals_eager_and_vmap_equals_a_loop(method, key):
    explain = method(smooth)
    xs = jnp.stack([X, 2 * X, X - 0.5])
    one = jax.jit(functools.partial(call, explain))
    loop = [one(key, W, x) for x in xs]
    batched = jax.jit(jax.vmap(one, in_axes=(None, None, 0)))(key, W, xs)
    np.testing.assert_allclose(batched, jnp.stack(loop), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(call(explain, key, W, X), loop[0], rtol=1e-3, atol=1e-5)


@each_method
@pytest.mark.parametrize(
    "transform", slow_but({"smooth": sj.smoothgrad, "noise": sj.noisegrad}, "noise")
)
@pytest.mark.slow
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
@pytest.mark.slow
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


@pytest.mark.parametrize("name", ["occlusion", "sobol", "hsic", "lime", "kernel_shap"])
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


@pytest.mark.parametrize("method", slow_but(METHODS, "occlusion", "hsic"))
@pytest.mark.slow
def test_of_noisegrad_of_the_score(method, key):
    got = run(method(sj.noisegrad(smooth, 0.3, num_samples=2)), key, W, X)
    assert np.all(np.isfinite(got))
    assert not np.allclose(got, run(method(smooth), key, W, X), rtol=1e-2)


@each_tabular
@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("method", "num_drawn", "num_scores"),
    [
        # The cells of two leaves and their shifts along two axes, for six masks.
        pytest.param(
            functools.partial(rise, num_samples=6, grid=(3, 4)),
            6 * 2 * (1 + 2),
            6,
            marks=pytest.mark.slow,
        ),
        # The digits by which points are shifted.
        (functools.partial(sobol, num_designs=5, grid=2), 1, 1),
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

    for name in ("bernoulli", "bits", "randint", "uniform"):
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


@each_tabular
def test_half_precision_keeps_its_dtype(method, key):
    got = run(method(linear), key, jnp.ones(3, jnp.bfloat16), jnp.arange(3, dtype=jnp.bfloat16))
    assert got.dtype == jnp.bfloat16


@each_tabular
def test_maps_are_in_the_wider_dtype_of_x_and_the_score(method, key):
    for of_x, of_score, wider in [
        ("bfloat16", "float32", "float32"),
        ("float32", "bfloat16", "float32"),
        ("float16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
        ("float16", "int32", "float32"),
    ]:
        explain = method(lambda params, x, dtype=of_score: jnp.sum(x).astype(dtype))
        got = jax.eval_shape(lambda x, explain=explain: call(explain, key, None, x),
            jax.ShapeDtypeStruct((4,), of_x))  # fmt: skip
        assert got.dtype == wider


def test_a_float32_score_of_half_precision_is_not_rounded_to_it():
    params = jnp.array([1.0, 1.001, 1.002, 1.003])
    explain = occlusion(lambda p, x: jnp.sum(x.astype(jnp.float32) * p), axes=(0,))
    got = explain(params, jnp.ones(4, jnp.bfloat16))
    np.testing.assert_allclose(got, params, atol=1e-6)
    got = explain(1e5 * params, jnp.ones(4, jnp.float16))
    np.testing.assert_allclose(got, 1e5 * params, rtol=1e-6)


@each_tabular
def test_scores_that_are_no_scalar_are_named(method, key):
    for score, got in [
        (lambda p, x: {"boxes": x, "scores": x.sum()}, "got a dict"),
        (lambda p, x: (x.sum(), x), "got a tuple"),
        (lambda p, x: x.sum()[None], r"shape \(1,\)"),
    ]:
        with pytest.raises(TypeError, match=f"must be a real scalar.*{got}"):
            call(method(score), key, None, jnp.ones(4))


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
@pytest.mark.slow
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
@pytest.mark.slow
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
        "lime": {"num_samples": 203},
        "kernel_shap": {"num_samples": 62},
    }[method.func.__name__]
    # Three in the loop, and before it the whole input: of occlusion also once for its shape.
    most = {"occlusion": 5, "lime": 4, "kernel_shap": 4}.get(method.func.__name__, 3)
    assert traces(**more) <= most
    assert traces() <= most


@pytest.mark.slow
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
        (lime, {"num_samples": 100}, {"num_samples": 10_000}, 9900 + 100),
        (kernel_shap, {"num_samples": 200}, {"num_samples": 4000}, 3800 + 100),
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
    (lambda: occlusion(linear, 0), ValueError, "(?s)patch must be at least 1; got 0.*in occlusion"),
    (lambda: occlusion(linear, 2.5), TypeError, "(?s)patch must be a Python int.*in occlusion"),
    (lambda: occlusion(linear, (2, 2, 2)), ValueError, r"patch must be .* one for each of axes"),
    (lambda: occlusion(linear, 4, 0), ValueError, "(?s)stride must be at least 1.*in occlusion"),
    (lambda: occlusion(linear, 4, (4, 5)), ValueError, r"no patch would cover.*\(4, 5\)"),
    (lambda: occlusion(linear, 4, 4, axes=0), TypeError, r"axes must be a tuple like \(0, 1\)"),
    (lambda: occlusion(linear, 4, 4, axes=(0, 0)), ValueError, r"different axes; got \(0, 0\)"),
    (lambda: occlusion(linear, 4, 4, axes=()), ValueError, r"one or more different axes; got \(\)"),
    (lambda: occlusion(linear, 4, 4, axes=(0.5,)), TypeError, "each of axes must be a Python int"),
    (lambda: occlusion(linear, chunk_size=0), ValueError, "chunk_size must be at least 1"),
    (lambda: occlusion(linear, argnum=-1), ValueError, "argnum must be at least 0"),
    (
        lambda: rise(linear, num_samples=0),
        ValueError,
        "(?s)num_samples must be at least 1.*in rise",
    ),
    (
        lambda: rise(linear, num_samples=2.0),
        TypeError,
        "(?s)num_samples must be a Python int.*in rise",
    ),
    (lambda: rise(linear, grid=0), ValueError, "(?s)grid must be at least 1; got 0.*in rise"),
    (
        lambda: rise(linear, grid=(7,)),
        ValueError,
        r"(?s)grid must be one number.*got \(7,\).*in rise",
    ),
    (lambda: rise(linear, grid="7"), TypeError, "(?s)grid must be a Python int.*got '7'.*in rise"),
    (
        lambda: rise(linear, probability=0),
        ValueError,
        "probability must be above 0 and below 1; got 0",
    ),
    (lambda: rise(linear, probability=1.0), ValueError, "above 0 and below 1; got 1.0"),
    (lambda: rise(linear, probability=float("nan")), ValueError, "above 0 and below 1; got nan"),
    (lambda: rise(linear, probability="a"), TypeError, "probability must be a number; got 'a'"),
    (lambda: rise(linear, probability=True), TypeError, "probability must be a number; got True"),
    (lambda: rise(linear, reduction=sj.reductions.mean), TypeError, "with the parentheses"),
    (lambda: rise(linear, tolerance=0.0), ValueError, "(?s)tolerance must be above 0.*in rise"),
    (
        lambda: rise(linear, sharding="draws"),
        TypeError,
        "(?s)sharding must be a NamedSharding.*in rise",
    ),
    (
        lambda: sobol(linear, num_designs=1),
        ValueError,
        "(?s)num_designs must be at least 2.*in sobol",
    ),
    (lambda: sobol(linear, grid=-1), ValueError, "(?s)grid must be at least 1.*in sobol"),
    (
        lambda: hsic(linear, num_samples=3),
        ValueError,
        "(?s)num_samples must be at least 4.*in hsic",
    ),
    (
        lambda: hsic(linear, chunk_size=1.5),
        TypeError,
        "(?s)chunk_size must be a Python int.*in hsic",
    ),
    # known when called
    (lambda: occlusion(linear, 32)(SMALL, SMALL), ValueError, r"of \(32, 32\) .*\(4, 4, 1\)"),
    (
        lambda: occlusion(linear)(W, jnp.ones(3)),
        ValueError,
        r"axes \(0, 1\) must be .* shape \(3,\)\. Type axes=\(0,\)",
    ),
    (lambda: occlusion(linear, axes=(0, -3))(W, X), ValueError, "must be different axes"),
    (lambda: rise(linear)(KEY, SMALL, SMALL), ValueError, r"\(7, 7\) cells.*grid=None"),
    (lambda: sobol(linear)(KEY, SMALL, SMALL), ValueError, r"\(8, 8\) cells.*\(4, 4, 1\)"),
    (lambda: hsic(linear)(SMALL, SMALL), TypeError, "takes a PRNG key"),
    (lambda: hsic(linear)(KEY, SMALL), TypeError, "argnum=1.* is missing"),
    (
        lambda: rise(linear)(KEY, W, jnp.ones(SHAPE, int)),
        TypeError,
        "(?s)floating-point arrays are needed.*in rise",
    ),
    (
        lambda: rise(linear, jnp.ones(5), grid=2)(KEY, W, X),
        ValueError,
        r"(?s)baseline of shape \(5,\).*in rise",
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
    (cells,), num_cells = cells_of([Map((50_000,), (0,), 0)], None)
    assert num_cells == 50_000
    np.testing.assert_array_equal(cells, np.arange(50_000))


@pytest.mark.parametrize("size", [1, 7, 13, 32])
def test_cells_are_as_equal_as_whole_positions_allow(size):
    for cells in range(1, size + 1):
        (numbers,), num_cells = cells_of([Map((size,), (0,), 0)], (cells,))
        assert num_cells == cells
        assert np.all(np.diff(numbers) >= 0)
        counts = np.bincount(numbers, minlength=cells)
        assert counts.max() - counts.min() <= (size % cells > 0)


@pytest.mark.parametrize("name", ["sobol", "hsic"])
def test_a_constant_score_depends_on_nothing_and_nan_is_not_hidden(name, key):
    explain = jax.jit(TABULAR[name](lambda w, x: w))
    np.testing.assert_allclose(explain(key, 3.0, jnp.ones(5)), np.zeros(5), atol=1e-6)
    assert np.all(np.isnan(explain(key, jnp.nan, jnp.ones(5))))
