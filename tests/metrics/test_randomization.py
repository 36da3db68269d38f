"""Randomisation metrics on models whose maps, and so their similarities, are known."""

import functools
import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import stats

import smoothjax as sj
from smoothjax import reductions
from smoothjax.metrics import (
    consistency,
    emprt,
    entropy,
    invariance,
    layers_at_depth,
    parameter_randomization,
    random_logit,
    redraw,
)
from smoothjax.metrics.similarity import cosine, pearson, spearman, ssim

KEY = jax.random.key(0)
STACK = reductions.stack()


def random(shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# The gradient of x A B c is A B c, whatever x.
SHAPES = {"a": (7, 5), "b": (5, 4), "c": (4,)}
PARAMS = {name: random(shape, i) for i, (name, shape) in enumerate(SHAPES.items())}
FRESH = {name: random(shape, 10 + i) for i, (name, shape) in enumerate(SHAPES.items())}
X = random((7,), 20)


def product(params, x):
    return x @ params["a"] @ params["b"] @ params["c"]


def map_of(fresh):
    """The gradient where the layers named in `fresh` are randomised."""
    a, b, c = (np.float64((FRESH if name in fresh else PARAMS)[name]) for name in "abc")
    return a @ b @ c


def cosine_of(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def spearman_of(a, b):
    return stats.spearmanr(a, b).statistic


def to_fresh(key, params):
    del key, params
    return FRESH


def leaf(name):
    return sj.by_path(lambda path: path == name)


def layers_of(names):
    return {name: leaf(name) for name in names}


def edges(params, x):
    del params
    return jnp.gradient(x)


def everything(params, x):
    """An explainer that returns what it is given."""
    return params, x


def with_noise(key, params, x):
    return params, jax.random.normal(key, x.shape, x.dtype)


@pytest.mark.parametrize(
    ("order", "cascade", "stages"),
    [
        ("cba", True, ["c", "cb", "cba"]),
        ("abc", True, ["a", "ab", "abc"]),
        ("cba", False, ["c", "b", "a"]),
        ("bca", False, ["b", "c", "a"]),
        ("ca", True, ["c", "ca"]),
    ],
)
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_curve_of_a_product_of_layers(order, cascade, stages, chunk_size):
    metric = parameter_randomization(
        sj.saliency(product),
        layers_of(order),
        reinitialize=to_fresh,
        cascade=cascade,
        similarity=cosine,
        reduction=STACK,
        chunk_size=chunk_size,
    )
    want = [cosine_of(map_of(""), map_of(stage)) for stage in stages]
    assert len({round(w, 2) for w in want}) == len(want)
    np.testing.assert_allclose(jax.jit(metric)(KEY, PARAMS, X), want, rtol=1e-5)


def test_by_default_the_mean_of_rank_correlations_in_a_cascade():
    metric = parameter_randomization(sj.saliency(product), layers_of("cba"), reinitialize=to_fresh)
    want = np.mean([spearman_of(map_of(""), map_of(stage)) for stage in ("c", "cb", "cba")])
    assert abs(want) > 0.05
    np.testing.assert_allclose(jax.jit(metric)(KEY, PARAMS, X), want, rtol=1e-5)


def test_the_sign_is_kept_unless_the_similarity_drops_it():
    def negated(key, params):
        del key
        return jax.tree.map(jnp.negative, params)

    def curve(similarity):
        return jax.jit(
            parameter_randomization(
                sj.saliency(product),
                layers_of("cba"),
                reinitialize=negated,
                similarity=similarity,
                reduction=STACK,
            )
        )(KEY, PARAMS, X)

    np.testing.assert_allclose(curve(spearman), [-1, 1, -1])
    np.testing.assert_allclose(curve(lambda a, b: spearman(abs(a), abs(b))), [1, 1, 1])


def test_a_map_that_does_not_look_at_the_model_is_1_throughout():
    metric = parameter_randomization(edges, layers_at_depth(PARAMS), reduction=STACK)
    np.testing.assert_array_equal(jax.jit(metric)(KEY, PARAMS, X), [1, 1, 1])


def test_a_map_of_the_weights_is_lost_where_they_are_redrawn():
    """Independent maps of n entries correlate by 0 +- 1 / sqrt(n)."""
    params = {"w": random((4000,), 1) ** 3, "unused": random((3,), 2)}
    explain = sj.saliency(lambda params, x: params["w"] @ x)
    metric = parameter_randomization(explain, layers_at_depth(params), reduction=STACK)
    unused, w = jax.jit(metric)(KEY, params, jnp.ones(4000, jnp.float32))
    assert unused == pytest.approx(1)
    assert abs(float(w)) < 4 / np.sqrt(4000)


def test_randomised_params_are_drawn_once_for_each_key():
    """Each stage that a layer is part of sees the same new values."""
    metric = jax.jit(
        parameter_randomization(
            everything,
            layers_of("cb"),
            similarity=lambda a, b: jnp.where(jnp.all(a[1] == b[1]), b[0]["c"][0], jnp.nan),
            reduction=STACK,
        )
    )
    first, second = metric(KEY, PARAMS, X)
    assert first == second != PARAMS["c"][0]
    assert metric(jax.random.key(1), PARAMS, X)[0] != first


def test_what_no_layer_selects_is_left_alone():
    def changed(a, b):
        return sum(10**i * jnp.any(a[0][n] != b[0][n]).astype(int) for i, n in enumerate("abc"))

    layers = {"all": sj.by_path(lambda path: path != "b")}
    metric = parameter_randomization(everything, layers, similarity=changed)
    assert jax.jit(metric)(KEY, PARAMS, X) == 101


def test_leaves_that_are_no_floats_are_left_alone():
    """A layer may hold functions, numbers and integers; and numpy's arrays are not written to."""
    params = {"w": PARAMS["a"].copy(), "count": np.arange(3), "name": np.tanh, "none": None, "n": 2}

    def check(a, b):
        old, new = a[0], b[0]
        assert new["name"] is np.tanh
        assert new["none"] is None
        assert new["n"] == 2
        assert new["count"] is old["count"]
        return jnp.mean(old["w"] != new["w"])

    metric = parameter_randomization(everything, {"all": True}, similarity=check)
    assert jax.jit(lambda key, x: metric(key, params, x))(KEY, X) == 1
    np.testing.assert_array_equal(params["w"], PARAMS["a"])


def test_a_stochastic_explainer_gets_one_key_throughout_and_not_that_of_the_weights():
    def draw(key, params):
        return {**params, "c": jax.random.normal(key, X.shape, X.dtype)}

    def correlation(a, b):
        return jnp.where(jnp.all(a[1] == b[1]), pearson(b[0]["c"], b[1]), jnp.nan)

    metric = jax.jit(
        parameter_randomization(
            sj.stochastic(with_noise), layers_of("c"), reinitialize=draw, similarity=correlation
        )
    )
    assert abs(metric(KEY, {"c": X}, X)) < 0.99


@pytest.mark.parametrize(("num_layers", "chunk_size"), [(3, 1), (8, 1), (8, 3)])
def test_the_explainer_is_traced_a_few_times_for_any_number_of_layers(num_layers, chunk_size):
    traces = []

    def explain(params, x):
        traces.append(None)
        return params["0"] * x

    params = {str(i): X for i in range(num_layers)}
    layers = layers_at_depth(params)
    metric = parameter_randomization(explain, layers, chunk_size=chunk_size)
    jax.eval_shape(metric, KEY, params, X)
    assert len(traces) <= 4


def test_vmap_is_a_loop_and_shares_the_weights():
    metric = parameter_randomization(sj.saliency(tanh_net), layers_at_depth(NET), similarity=cosine)
    xs = random((3, 7), 5)
    batched = jax.vmap(metric, in_axes=(None, None, 0))
    want = [jax.jit(metric)(KEY, NET, x) for x in xs]
    assert np.ptp(want) > 1e-3
    np.testing.assert_allclose(jax.jit(batched)(KEY, NET, xs), want, rtol=1e-4, atol=1e-6)
    keys = jax.random.split(KEY, 3)
    want = [jax.jit(metric)(key, NET, x) for key, x in zip(keys, xs, strict=True)]
    each = jax.jit(jax.vmap(metric, in_axes=(0, None, 0)))(keys, NET, xs)
    np.testing.assert_allclose(each, want, rtol=1e-4, atol=1e-6)
    program = str(jax.make_jaxpr(batched)(KEY, NET, xs))
    assert "f32[7,6]" in program
    assert "f32[3,7,6]" not in program


NET = {"stem": {"kernel": random((7, 6), 1), "bias": random((6,), 2)}, "head": random((6,), 3)}


def tanh_net(params, x):
    return jnp.tanh(x @ params["stem"]["kernel"] + params["stem"]["bias"]) @ params["head"]


def test_narrow_params_stay_narrow_and_are_compared_in_float32():
    """The fresh weights are float32, and the model gets them as bfloat16, as it had them."""
    narrow = jax.tree.map(lambda p: jnp.asarray(p, jnp.bfloat16), PARAMS)
    x = jnp.asarray(X, jnp.bfloat16)
    metric = parameter_randomization(
        sj.saliency(product), layers_of("cba"), reinitialize=to_fresh, similarity=cosine
    )
    got = jax.jit(metric)(KEY, narrow, x)
    want = np.mean([cosine_of(map_of(""), map_of(stage)) for stage in ("c", "cb", "cba")])
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, atol=0.02)


def test_double_precision():
    with jax.enable_x64(True):
        params, x = jax.tree.map(np.float64, (PARAMS, X))
        metric = parameter_randomization(
            sj.saliency(product), layers_of("c"), reinitialize=to_fresh, similarity=cosine
        )
        want = cosine_of(map_of(""), map_of("c"))
        np.testing.assert_allclose(jax.jit(metric)(KEY, params, x), want, rtol=1e-12)
        metric = random_logit(class_map, 2, similarity=pearson)
        classes = np.float64(CLASSES)
        want = np.corrcoef(classes[:2] * x)[0, 1]
        np.testing.assert_allclose(jax.jit(metric)(KEY, classes, x, 1), want, rtol=1e-12)


def test_a_nan_is_passed_on():
    params = {**PARAMS, "c": np.full(4, np.nan, np.float32)}
    metric = parameter_randomization(sj.saliency(product), layers_of("cba"), reinitialize=to_fresh)
    assert np.isnan(jax.jit(metric)(KEY, params, X))


def test_pytrees_of_maps_need_a_similarity_of_their_own():
    def both(params, x):
        return {"x": jax.grad(product, 1)(params, x), "edges": jnp.gradient(x)}

    metric = parameter_randomization(
        both,
        layers_of("c"),
        reinitialize=to_fresh,
        similarity=lambda a, b: cosine(a["x"], b["x"]) + cosine(a["edges"], b["edges"]),
    )
    want = 1 + cosine_of(map_of(""), map_of("c"))
    np.testing.assert_allclose(jax.jit(metric)(KEY, PARAMS, X), want, rtol=1e-5)


# What randomises.


def test_redraw_keeps_mean_and_deviation_of_each_leaf():
    n = 20000
    params = {"u": 5 + 2 * random((n,), 1) ** 3, "v": (-1 + 0.1 * random((n,), 2)).reshape(100, -1)}
    new = jax.jit(redraw)(KEY, params)
    for name, old in params.items():
        z = (np.asarray(new[name], float).ravel() - old.mean(dtype=float)) / old.std(dtype=float)
        assert stats.kstest(z, "norm").pvalue > 1e-3
        assert abs(stats.pearsonr(z, old.ravel()).statistic) < 4 / np.sqrt(n)
        assert new[name].shape == old.shape


def test_redraw_draws_leaves_and_keys_apart():
    params = {"u": X, "v": X, "w": {"u": X}}
    one, two = jax.jit(redraw)(KEY, params), jax.jit(redraw)(jax.random.key(1), params)
    draws = [np.asarray(leaf) for leaf in jax.tree.leaves((one, two))]
    entries = np.concatenate(draws)
    assert np.unique(entries).size == entries.size
    again = jax.jit(redraw)(KEY, params)
    jax.tree.map(np.testing.assert_array_equal, one, again)


def test_redraw_keeps_what_has_no_deviation():
    params = {
        "zeros": np.zeros(3, np.float32),
        "one": np.float32([2.5]),
        "half": jnp.asarray(X, jnp.bfloat16),
        "count": np.arange(3),
        "name": np.tanh,
    }
    new = redraw(KEY, params)
    np.testing.assert_array_equal(new["zeros"], 0)
    np.testing.assert_array_equal(new["one"], 2.5)
    assert new["half"].dtype == jnp.bfloat16
    assert np.all(np.asarray(new["half"] != params["half"]))
    assert new["count"] is params["count"]
    assert new["name"] is np.tanh
    with pytest.raises(TypeError, match=r"(?s)floating-point arrays are needed.*in redraw"):
        redraw(KEY, {"count": np.arange(3)})


def test_layers_are_in_natural_order():
    blocks = {f"block{i}": {"w": X} for i in (10, 9, 1, 2)}
    params = {"stem": X, **blocks, "head": {"w": X, "b": X}, "step": np.arange(2)}
    layers = layers_at_depth(params)
    assert list(layers) == ["block1", "block2", "block9", "block10", "head", "stem"]
    nested = {"b": {"10": {"v": X, "u": X}, "9": {"w": X}}, "a": X}
    assert list(layers_at_depth(nested, 2)) == ["a", "b/9", "b/10"]
    assert list(layers_at_depth(nested, 5)) == ["a", "b/9/w", "b/10/u", "b/10/v"]
    numbered = {i: X for i in (10, 2)}
    assert list(layers_at_depth(numbered)) == ["2", "10"]


def test_lists_and_modules_keep_their_order():
    """Of a list of twelve, "10" follows "9"; fields of a module are in order of definition."""

    class Net(eqx.Module):
        stem: jax.Array
        blocks: list
        head: jax.Array

    net = Net(X, [{"w": X, "b": X}] * 12, X)
    assert list(layers_at_depth(net)) == ["stem", "blocks", "head"]
    names = [f"blocks/{i}" for i in range(12)]
    assert list(layers_at_depth(net, 2)) == ["stem", *names, "head"]
    # A list's position comes before what is inside its elements.
    mixed = [{"z": X}, {"a": X}, {"m": X}]
    assert list(layers_at_depth(mixed, 2)) == ["0/z", "1/a", "2/m"]


def test_layers_of_a_flax_model():
    linears = [nnx.Linear(2, 2, rngs=nnx.Rngs(0)) for _ in range(11)]
    params = nnx.state(nnx.Sequential(*linears), nnx.Param)
    assert list(layers_at_depth(params, 2)) == [f"layers/{i}" for i in range(11)]
    variables = {"params": {"Dense_0": X, "Conv_10": X, "Conv_9": X}, "batch_stats": {"Norm_0": X}}
    assert list(layers_at_depth(variables)) == ["batch_stats", "params"]
    expected = ["batch_stats/Norm_0", "params/Conv_9", "params/Conv_10", "params/Dense_0"]
    assert list(layers_at_depth(variables, 2)) == expected


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_each_leaf_is_in_one_layer(depth):
    params = {"a": {"b": X, "bc": {"d": X, "e": X}}, "ab": X, "a/b": X}
    chosen = [select(params) for select in layers_at_depth(params, depth).values()]
    assert jax.tree.map(lambda *bools: sum(bools), *chosen) == jax.tree.map(lambda _: 1, params)


def test_layers_select_from_other_params_of_the_same_names():
    """Selections are functions of params, such as those of a narrower network."""
    layers = layers_at_depth(PARAMS)
    assert layers["b"]({"a": 0.0, "b": {"w": 0.0}}) == {"a": False, "b": {"w": True}}


# The rise of complexity.


def histogram_entropy_of(a):
    return stats.entropy(np.histogram(a, 100)[0])


@pytest.mark.parametrize(
    ("settings", "oracle"),
    [
        ({}, histogram_entropy_of),
        ({"complexity": entropy}, lambda a: stats.entropy(np.abs(a))),
        ({"complexity": jnp.max}, np.max),
    ],
)
def test_emprt_is_the_relative_rise_of_complexity(settings, oracle):
    metric = jax.jit(emprt(sj.saliency(product), reinitialize=to_fresh, **settings))
    before, after = oracle(map_of("")), oracle(map_of("abc"))
    np.testing.assert_allclose(metric(KEY, PARAMS, X), (after - before) / before, atol=1e-4)


def test_emprt_randomises_what_is_selected():
    settings = {"reinitialize": to_fresh, "complexity": jnp.max}
    got = jax.jit(emprt(sj.saliency(product), where=leaf("b"), **settings))(KEY, PARAMS, X)
    want = map_of("b").max() / map_of("").max() - 1
    assert abs(want - (map_of("abc").max() / map_of("").max() - 1)) > 0.1
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_emprt_of_what_does_not_look_at_the_model_and_of_nothing():
    assert jax.jit(emprt(edges))(KEY, PARAMS, X) == 0

    def constant_for(value):
        return lambda params, x: jnp.where(params["c"][0] == value, 0 * x, x)

    metric = emprt(constant_for(PARAMS["c"][0]), reinitialize=to_fresh)
    assert jax.jit(metric)(KEY, PARAMS, X) == np.inf
    metric = emprt(constant_for(FRESH["c"][0]), reinitialize=to_fresh)
    np.testing.assert_allclose(jax.jit(metric)(KEY, PARAMS, X), -1)
    assert jax.jit(emprt(lambda params, x: 0 * x))(KEY, PARAMS, X) == 0


def test_emprt_redraws_by_the_key_and_gives_both_maps_one():
    metric = jax.jit(emprt(lambda params, x: params["a"], complexity=lambda a: jnp.sum(a**2)))
    assert metric(KEY, PARAMS, X) != metric(jax.random.key(1), PARAMS, X)
    noisy = emprt(sj.stochastic(with_noise), complexity=lambda maps: 1 + jnp.sum(maps[1] ** 2))
    assert sj.is_stochastic(noisy)
    assert jax.jit(noisy)(KEY, PARAMS, X) == 0
    assert noisy.__name__ == "emprt(with_noise)"
    assert list(inspect.signature(noisy).parameters) == ["key", "params", "x"]


def test_the_smooth_test_is_that_of_smoothgrad():
    """Of independent noise on maps, the rank correlation of the means is nearer to the truth."""
    layers = {"c": leaf("c")}

    def noisy(params, x):
        return sj.saliency(product)(params, x) + 5 * jnp.sin(1e3 * x)

    def similar(explain):
        metric = parameter_randomization(explain, layers, reinitialize=to_fresh, similarity=cosine)
        return jax.jit(metric)(KEY, PARAMS, X)

    want = cosine_of(map_of(""), map_of("c"))
    smooth = similar(sj.smoothgrad(noisy, 0.1, num_samples=500))
    assert abs(smooth - want) < 0.2 < abs(similar(noisy) - want)


# One class against another.

CLASSES = random((4, 7), 30)


def class_map(params, x, label):
    return params[label] * x


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_the_other_class_is_uniform_over_all_others(num_classes):
    metric = random_logit(lambda p, x, label: label, num_classes, similarity=lambda a, b: b)
    keys = jax.random.split(KEY, 600)
    draws = jax.jit(jax.vmap(jax.vmap(metric, (0, None, None, None)), (None, None, None, 0)))
    for label, others in enumerate(draws(keys, None, None, np.arange(num_classes))):
        counts = np.bincount(np.asarray(others, int), minlength=num_classes)
        assert counts.size == num_classes
        assert counts[label] == 0
        assert stats.chisquare(np.delete(counts, label)).pvalue > 1e-3 or num_classes == 2


def test_random_logit_compares_the_class_with_the_other():
    metric = jax.jit(random_logit(class_map, 4, similarity=pearson))
    maps = np.float64(CLASSES) * X
    want = np.corrcoef(maps)
    seen = set()
    for seed in range(8):
        got = metric(jax.random.key(seed), CLASSES, X, 1)
        other = int(np.argmin(abs(want[1] - float(got))))
        np.testing.assert_allclose(got, want[1, other], rtol=1e-5)
        seen.add(other)
    assert seen == {0, 2, 3}


def test_random_logit_takes_pictures_by_default():
    pictures = random((2, 12, 13, 3), 1)
    metric = random_logit(lambda params, x, label: params[label], 2)
    got = jax.jit(metric)(KEY, pictures, None, 0)
    np.testing.assert_allclose(got, jax.jit(ssim)(pictures[0], pictures[1]), rtol=1e-5)
    with pytest.raises(ValueError, match="such as spearman"):
        jax.eval_shape(random_logit(class_map, 4), KEY, CLASSES, X, 1)


def test_random_logit_of_a_map_that_does_not_look_at_the_class():
    metric = random_logit(lambda params, x, label: jnp.gradient(x), 4, similarity=spearman)
    assert jax.jit(metric)(KEY, CLASSES, X, 2) == 1


def test_random_logit_gives_one_key_to_both_maps():
    def noise(key, params, x, label):
        return jax.random.key_data(key)

    def same(a, b):
        return jnp.where(jnp.all(a == b), a[0], 0)

    metric = jax.jit(random_logit(sj.stochastic(noise), 4, similarity=same))
    one, two = metric(KEY, None, None, 0), metric(jax.random.key(1), None, None, 0)
    assert 0 != one != two != 0


def test_random_logit_takes_narrow_labels_and_many_classes():
    """Of 1000 classes, few fit into the label's uint8."""
    metric = random_logit(lambda p, x, label: label, 1000, similarity=lambda a, b: b)
    keys = jax.random.split(KEY, 50)
    others = jax.jit(jax.vmap(metric, (0, None, None, None)))(keys, None, None, np.uint8(7))
    assert others.max() > 800


def test_random_logit_of_a_traced_label_out_of_range_is_nan():
    """JAX would take another class in silence, and pass -1 for the last one."""
    metric = jax.jit(random_logit(class_map, 4, similarity=cosine))
    got = np.array([metric(KEY, CLASSES, X, label) for label in (-1, 0, 3, 4)])
    np.testing.assert_array_equal(np.isnan(got), [True, False, False, True])


def test_random_logit_under_vmap_with_one_key_is_a_loop():
    metric = random_logit(class_map, 4, similarity=cosine)
    labels, xs = np.array([0, 3, 1]), random((3, 7), 2)
    got = jax.jit(jax.vmap(metric, (None, None, 0, 0)))(KEY, CLASSES, xs, labels)
    compiled = jax.jit(metric)
    want = [compiled(KEY, CLASSES, x, label) for x, label in zip(xs, labels, strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5)


# Two models.


def linear(params, x):
    return jnp.sum(params["w"] * x) + params["b"]


LINEAR = {"w": random((7,), 40), "b": np.float32(0.5)}
OTHER = {"w": random((7,), 41), "b": np.float32(-1.5)}


def test_consistency_is_the_magnitude_of_the_correlation():
    want = spearman_of(LINEAR["w"], OTHER["w"])
    assert 0.1 < abs(want) < 0.9
    metric = jax.jit(lambda params, other, x: consistency(sj.saliency(linear), other)(params, x))
    np.testing.assert_allclose(metric(LINEAR, OTHER, X), abs(want), rtol=1e-5)
    opposite = {**OTHER, "w": -OTHER["w"]}
    np.testing.assert_allclose(metric(LINEAR, opposite, X), abs(want), rtol=1e-5)
    np.testing.assert_allclose(metric(LINEAR, LINEAR, X), 1, rtol=1e-6)


def test_consistency_with_another_similarity():
    metric = jax.jit(consistency(sj.input_times_gradient(linear), OTHER, similarity=cosine))
    want = cosine_of(np.float64(LINEAR["w"] * X), np.float64(OTHER["w"] * X))
    np.testing.assert_allclose(metric(LINEAR, X), abs(want), rtol=1e-5)


def undone(params, shift):
    """The model that has learned the same from shifted inputs: its bias undoes the shift."""
    return {**params, "b": params["b"] - np.sum(params["w"] * shift)}


@pytest.mark.parametrize("shift", [1.5, 3 * random((7,), 50)])
def test_invariance_of_gradients_and_not_of_products(shift):
    other = undone(LINEAR, shift)
    np.testing.assert_allclose(linear(other, X + np.float32(shift)), linear(LINEAR, X), atol=1e-5)

    def value(method, similarity=spearman):
        metric = invariance(method(linear), other, shift, similarity=similarity)
        return jax.jit(metric)(LINEAR, X)

    np.testing.assert_allclose(value(sj.saliency), 1, rtol=1e-6)
    w, x = np.float64(LINEAR["w"]), np.float64(X)
    for similarity, oracle in (
        (spearman, spearman_of),
        (pearson, lambda a, b: np.corrcoef(a, b)[0, 1]),
    ):
        want = abs(oracle(w * x, w * (x + shift)))
        assert want < 0.98
        np.testing.assert_allclose(value(sj.input_times_gradient, similarity), want, rtol=1e-5)


def test_invariance_of_a_network_needs_the_shift():
    other = {
        **NET,
        "stem": {**NET["stem"], "bias": NET["stem"]["bias"] - 2 * NET["stem"]["kernel"].sum(0)},
    }

    def value(shift):
        return jax.jit(invariance(sj.saliency(tanh_net), other, shift, similarity=cosine))(NET, X)

    np.testing.assert_allclose(value(2.0), 1, rtol=1e-4)
    assert value(0.0) < 0.98
    assert value(-2.0) < 0.98


def test_invariance_keeps_the_dtype_of_x():
    def explain(params, x):
        assert x.dtype == jnp.bfloat16
        return params * x

    x = jnp.asarray([1.0, 2.0, 4.0], jnp.bfloat16)
    metric = invariance(
        explain, np.float32(1.0).astype(jnp.bfloat16), 100.3, similarity=lambda a, b: b[0]
    )
    assert jax.jit(metric)(jnp.asarray(1.0, jnp.bfloat16), x) == 101.5  # 101.3 in bfloat16


@pytest.mark.parametrize("build", [consistency, functools.partial(invariance, shift=1.0)])
def test_metrics_of_two_models_are_as_stochastic_as_the_explainer(build):
    plain = build(lambda params, x: params * x, LINEAR["w"])
    assert not sj.is_stochastic(plain)

    def noise(key, params, x):
        return jax.random.normal(key, x.shape, x.dtype)

    noisy = build(sj.stochastic(noise), OTHER["w"])
    assert sj.is_stochastic(noisy)
    assert jax.jit(noisy)(KEY, LINEAR["w"], X) == 1  # one key for both maps
    rest = build(lambda params, x, label, scale=1: scale * label * params * x, OTHER["w"])
    np.testing.assert_allclose(
        jax.jit(rest)(LINEAR["w"], X, 3.0, scale=2.0),
        jax.jit(build(lambda params, x: params * x, OTHER["w"]))(LINEAR["w"], X),
        rtol=1e-6,
    )


def test_names_and_signatures():
    explain = sj.saliency(lambda params, x, label: (params @ x)[label])
    metric = random_logit(explain, 3)
    assert sj.is_stochastic(metric)
    assert metric.__name__.startswith("random_logit(saliency(")
    assert list(inspect.signature(metric).parameters) == ["key", "params", "x", "label"]
    metric = parameter_randomization(explain, {"all": True})
    assert sj.is_stochastic(metric)
    assert list(inspect.signature(metric).parameters) == ["key", "params", "x", "label"]
    assert list(inspect.signature(consistency(explain, None)).parameters) == [
        "params",
        "x",
        "label",
    ]


randomization_of_edges = functools.partial(parameter_randomization, edges)


@pytest.mark.parametrize(
    ("build", "error", "match"),
    [
        (lambda: parameter_randomization(3, {"a": True}), TypeError, "takes a function"),
        (lambda: randomization_of_edges([leaf("a")]), TypeError, "like layers_at_depth"),
        (lambda: randomization_of_edges("a"), TypeError, "like layers_at_depth"),
        (lambda: randomization_of_edges({"a": True}, similarity=1), TypeError, "similarity"),
        (lambda: randomization_of_edges({"a": True}, chunk_size=0), ValueError, "chunk_size"),
        (lambda: randomization_of_edges({"a": True}, reduction=jnp.mean), TypeError, "reduction"),
        (lambda: random_logit(3, 2), TypeError, "takes a function"),
        (lambda: random_logit(edges, 1), ValueError, "num_classes must be at least 2"),
        (lambda: random_logit(edges, 2.5), TypeError, "num_classes"),
        (lambda: random_logit(edges, 2, similarity=1), TypeError, "similarity"),
        (lambda: emprt(3), TypeError, "takes a function"),
        (lambda: emprt(edges, complexity=1), TypeError, "complexity must be a function"),
        (lambda: consistency(3, None), TypeError, "takes a function"),
        (lambda: consistency(edges, None, similarity=1), TypeError, "similarity"),
        (lambda: invariance(3, None, 1.0), TypeError, "takes a function"),
        (lambda: layers_at_depth(PARAMS, 0), ValueError, "depth must be at least 1"),
        (lambda: layers_at_depth(PARAMS, 1.5), TypeError, "depth"),
        (lambda: layers_at_depth({"n": np.arange(2)}), TypeError, "floating-point"),
    ],
)
def test_bad_settings(build, error, match):
    with pytest.raises(error, match=match):
        build()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layers": {"d": leaf("d")}}, ValueError, "layer 'd' selects no floating-point leaf"),
        ({"layers": {}}, ValueError, "at least 1"),
        ({"reduction": reductions.variance()}, ValueError, "at least 2"),
        ({"layers": {"a": "a"}}, TypeError, "layer 'a' must be bools.* got 'a'"),
        ({"layers": {"a": {"x": True}}}, ValueError, "layer 'a' must be one value or a pytree"),
        ({"reinitialize": lambda k, p: p["a"]}, ValueError, "dict"),
        (
            {"reinitialize": lambda k, p: {**p, "b": p["a"]}},
            ValueError,
            r"must keep shapes; got \(7, 5\) at 'b'",
        ),
        ({"similarity": lambda a, b: a * b}, ValueError, r"scalar; got shape \(7,\)"),
    ],
)
def test_bad_layers_and_functions(options, error, match):
    metric = parameter_randomization(edges, **{"layers": {"a": leaf("a")}, **options})
    with pytest.raises(error, match=match):
        jax.eval_shape(metric, KEY, PARAMS, X)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"takes a PRNG key.*got nothing"):
        parameter_randomization(edges, {"a": leaf("a")})()
    with pytest.raises(TypeError, match="takes a PRNG key"):
        random_logit(class_map, 4)(CLASSES, X, 1)
    metric = random_logit(class_map, 4, similarity=cosine)
    for label in (4, -1):
        with pytest.raises(ValueError, match=f"label must be an int from 0 to 3; got {label}"):
            metric(KEY, CLASSES, X, label)
    for label in (1.0, np.arange(2)):
        with pytest.raises(ValueError, match="label must be an int"):
            metric(KEY, CLASSES, X, label)
    with pytest.raises(TypeError, match=r"argnum=2.* is missing"):
        metric(KEY, CLASSES, X, label=1)
    with pytest.raises(ValueError, match=r"shift of shape \(3,\) does not broadcast"):
        jax.eval_shape(invariance(edges, PARAMS, np.ones(3, np.float32)), PARAMS, X)
    with pytest.raises(TypeError, match=r"(?s)floating-point arrays are needed.*in invariance"):
        invariance(edges, PARAMS, 1.0)(PARAMS, np.arange(3))
    noisy = sj.smoothgrad(edges, 0.1, reduction=reductions.mean_and_stderr())
    with pytest.raises(TypeError, match="Judge the mean of an Estimate"):
        jax.eval_shape(consistency(noisy, PARAMS), KEY, PARAMS, X)
