"""Several inputs, an image and a table in one pytree: they work, or an error says what to type."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import smoothjax as sj
from smoothjax import metrics

X = {"image": jnp.linspace(0.1, 0.9, 36).reshape(4, 3, 3), "table": jnp.array([1.0, -2.0, 3.0])}
PARAMS = {
    "image": jnp.linspace(-1.0, 2.0, 36).reshape(4, 3, 3),
    "table": jnp.array([2.0, 1.0, -1.0]),
}
BASELINE = {"image": 0.0, "table": jnp.array([1.0, 1.0, 1.0])}


def score(params, x):
    return jnp.sum(params["image"] * x["image"] ** 2) + jnp.sum(params["table"] * x["table"] ** 3)


saliency = sj.saliency(score)


def test_methods_explain_both_parts_in_their_own_units(key):
    got = sj.integrated_gradients(score, BASELINE, num_steps=3)(PARAMS, X)
    np.testing.assert_allclose(got["image"], PARAMS["image"] * X["image"] ** 2, rtol=1e-5)
    np.testing.assert_allclose(got["table"], PARAMS["table"] * (X["table"] ** 3 - 1), atol=1e-5)
    error = metrics.completeness_error(score, BASELINE)(PARAMS, X, got)
    np.testing.assert_allclose(error, 0, atol=1e-4)


def test_each_part_has_a_level_of_its_own(key):
    rows = jnp.array([[0.0, 0.0, 0.0], [1.0, 10.0, 100.0]])
    levels = {"image": 0.0, "table": sj.relative(0.5, rows)}
    reduction = sj.reductions.variance()
    spread = sj.smoothgrad(lambda params, x: x, levels, num_samples=400, reduction=reduction)
    got = spread(key, PARAMS, X)
    np.testing.assert_allclose(got["image"], 0, atol=1e-12)
    np.testing.assert_allclose(jnp.sqrt(got["table"]), [0.5, 5.0, 50.0], rtol=0.15)


def test_evaluate_judges_the_parts(key):
    def share_of_the_table(params, x, attribution):
        size = jax.tree.map(lambda leaf: jnp.sum(jnp.abs(leaf)), attribution)
        return size["table"] / (size["table"] + size["image"])

    result = sj.evaluate(
        {"saliency": saliency},
        params=PARAMS,
        examples=(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), X),),
        key=key,
        metrics={"share": share_of_the_table},
        progress=False,
    )
    of_image = np.sum(np.abs(2 * PARAMS["image"] * X["image"]))
    of_table = np.sum(np.abs(3 * PARAMS["table"] * X["table"] ** 2))
    expected = [of_table / (of_table + of_image), 4 * of_table / (4 * of_table + 2 * of_image)]
    np.testing.assert_allclose(result.scores["saliency"]["share"], expected, rtol=1e-5)


REFUSED = {
    "deletion": lambda key, a: metrics.deletion(score)(PARAMS, X, a),
    "infidelity": lambda key, a: metrics.infidelity(score)(key, PARAMS, X, a),
    "mu_fidelity": lambda key, a: metrics.mu_fidelity(score)(key, PARAMS, X, a),
    "sensitivity": lambda key, a: metrics.max_sensitivity(saliency, radius=0.1)(key, PARAMS, X),
    "occlusion": lambda key, a: sj.occlusion(score, 2)(PARAMS, X),
    "rise": lambda key, a: sj.rise(score)(key, PARAMS, X),
    "lowpass": lambda key, a: sj.lowpass(saliency, 3)(PARAMS, X),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_takes_one_array_says_what_to_type(name, key):
    with pytest.raises((TypeError, ValueError), match=r"\{\*\*x, 'image': image\}"):
        REFUSED[name](key, saliency(PARAMS, X))


def test_one_level_by_range_is_refused(key):
    with pytest.raises(ValueError, match=r"a level for each of \['image', 'table'\]"):
        sj.smoothgrad(saliency)(key, PARAMS, X)


def test_what_the_errors_say_works(key):
    def image_score(params, image):
        return score(params, {**X, "image": image})

    def explain_image(params, image):
        return saliency(params, {**X, "image": image})["image"]

    a = saliency(PARAMS, X)["image"]
    assert jnp.isfinite(metrics.deletion(image_score)(PARAMS, X["image"], a))
    assert metrics.max_sensitivity(explain_image, radius=0.1)(key, PARAMS, X["image"]) > 0
    assert sj.occlusion(image_score, 2)(PARAMS, X["image"]).shape == (4, 3, 1)
