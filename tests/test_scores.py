"""The score of a class, and labels that it does not have."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj

W = jax.random.normal(jax.random.key(1), (5, 10))
X = jnp.ones(5)


def apply(params, x):
    return x @ params


SCORE = sj.class_score(apply)


@pytest.mark.parametrize("outputs", [apply, lambda params, x: x[None] @ params])
def test_it_is_one_output(outputs):
    score = sj.class_score(outputs)
    for label in (0, 9, np.int64(4), np.uint8(4), jnp.int32(4)):
        np.testing.assert_allclose(score(W, X, label), (X @ W)[label], rtol=1e-6)
        np.testing.assert_allclose(jax.jit(score)(W, X, label), (X @ W)[label], rtol=1e-6)
    np.testing.assert_allclose(sj.saliency(score)(W, X, 4), W[:, 4], rtol=1e-6)
    assert str(inspect.signature(SCORE)) == "(params, x, label, **kwargs)"
    assert SCORE.__name__ == "class_score(apply)"


RELUS = sj.class_score(lambda params, x: jax.nn.relu(x + 1) @ params)
HEAD = sj.class_score(lambda params, activations: jnp.mean(activations, axis=(0, 1)) @ params)
UNKNOWN = [10, -1, -10, 2**31 - 1, -(2**31)]
METHODS = {
    "saliency": sj.saliency(SCORE),
    "smoothgrad": functools.partial(sj.smoothgrad(sj.saliency(SCORE), 0.1), jax.random.key(0)),
    "integrated gradients": sj.integrated_gradients(SCORE, num_steps=2),
    "occlusion": sj.occlusion(SCORE, 1, 1, axes=(0,)),
    "guided backpropagation": sj.guided_backprop(RELUS),
    "deconvnet": sj.deconvnet(RELUS),
    "gradcam": sj.gradcam(lambda params, x: x[None, None], HEAD, upsample=False),
    "input times gradient": sj.input_times_gradient(RELUS),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_traced_label_outside_makes_score_and_map_nan(name):
    explain = jax.jit(jax.vmap(METHODS[name], (None, None, 0)))
    maps = explain(W, X, jnp.array([*UNKNOWN, 3]))
    assert np.all(np.isnan(maps[:-1]))
    assert np.all(np.isfinite(maps[-1]))
    assert np.all(np.isnan(jax.vmap(SCORE, (None, None, 0))(W, X, jnp.array(UNKNOWN))))


def test_small_integers_hold_fewer_labels_than_there_are_classes():
    wide = jnp.ones((5, 1000))
    scores = jax.vmap(SCORE, (None, None, 0))(wide, X, jnp.array([3, 255], jnp.uint8))
    np.testing.assert_array_equal(scores, [5.0, 5.0])
    assert np.all(np.isnan(jax.vmap(SCORE, (None, None, 0))(wide, X, jnp.array([-1], jnp.int8))))


@pytest.mark.parametrize("label", [*UNKNOWN, jnp.int32(10)])
def test_a_known_label_outside_is_an_error(label):
    with pytest.raises(ValueError, match=r"(?s)label must be from 0 to 9; got.*in class_score"):
        sj.saliency(SCORE)(W, X, label)


def test_other_labels_and_outputs_are_refused():
    for label in (1.0, "cat", jnp.arange(2), None):
        with pytest.raises(TypeError, match=r"label must be one int.*type jnp.argmax\(label\)"):
            SCORE(W, X, label)
    for label in (jnp.float32(1), jnp.arange(2), jnp.bool_(True)):
        with pytest.raises(TypeError, match="label must be one integer; got shape"):
            jax.jit(SCORE)(W, X, label)
    for outputs in (jnp.float32(1), jnp.ones((2, 3)), jnp.ones(0), jnp.arange(3)):
        with pytest.raises(ValueError, match=r"apply\(params, x\) must return.*\(n,\).*got shape"):
            sj.class_score(lambda params, x, outputs=outputs: outputs)(W, X, 0)


def test_a_stochastic_apply_takes_a_key_first(key):
    noisy = sj.class_score(sj.noisegrad(apply, 0.1))
    assert sj.is_stochastic(noisy)
    assert noisy(key, W, X, 3) == sj.noisegrad(apply, 0.1)(key, W, X)[3]


def test_a_bool_is_no_label():
    score = sj.class_score(lambda params, x: params @ x)
    for run in (score, jax.jit(score)):
        with pytest.raises(TypeError, match="label must be one integer"):
            run(jnp.eye(3), jnp.ones(3), True)
