"""Users debug their own programs with JAX's flags, which must find no fault in ours."""

import jax
import jax.numpy as jnp
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax import metrics, reductions

KEY = jax.random.key(0)
W, X = jnp.arange(12.0).reshape(4, 3) / 10, jnp.array([1.0, 2.0, 0.0, 4.0])
ROWS = jnp.stack([X, X + 1, -X, 2 * X])
ALONG = {"axes": (0,), "grid": None}


def predict(p, x):
    return jnp.tanh(x @ p)


def score(p, x):
    return jnp.sum(predict(p, x))


@sj.stochastic
def noisy_score(key, p, x):
    """Of one number that uses the key up, which comes anew with each query."""
    return score(p, x) + jax.random.normal(key)


GRADIENT = sj.saliency(score)
DRAWS = {"num_samples": 4, "chunk_size": 3}


def smooth(**options):
    return sj.smoothgrad(GRADIENT, **DRAWS, **options)


STOCHASTIC = {
    "smoothgrad": smooth(),
    "variance": smooth(reduction=reductions.variance()),
    "mean_and_stderr": smooth(reduction=reductions.mean_and_stderr()),
    "stack": smooth(reduction=reductions.stack()),
    "noisegrad": sj.noisegrad(GRADIENT, 0.1, **DRAWS),
    "adaptgrad": sj.adaptgrad(GRADIENT, (0.0, 5.0), **DRAWS),
    "fusiongrad": sj.fusiongrad(GRADIENT, 0.1, 0.1, num_weight_draws=2, num_input_draws=2),
    "tolerance": sj.smoothgrad(GRADIENT, 0.1, num_samples=40, tolerance=0.5),
    "box_muller": smooth(sampler=sj.noise.box_muller),
    "expected_gradients": sj.expected_gradients(score, ROWS, num_samples=4),
    "rise": sj.rise(score, num_samples=4, axes=(0,), grid=2),
    "hsic": sj.hsic(score, num_samples=8, **ALONG),
    "saliency of a stochastic score": sj.saliency(noisy_score),
    "occlusion of a stochastic score": sj.occlusion(noisy_score, 1, 1, axes=(0,)),
    "integrated_gradients of a stochastic score": sj.integrated_gradients(noisy_score, num_steps=2),
    "max_sensitivity": metrics.max_sensitivity(smooth(), radius=0.1, num_samples=2),
    "max_sensitivity of a stochastic score": metrics.max_sensitivity(
        sj.stochastic(lambda key, p, x: x * jax.random.normal(key)), radius=0.1, num_samples=2
    ),
    "deletion of a stochastic score": lambda key, p, x: metrics.deletion(noisy_score)(key, p, x, x),
    "mu_fidelity": lambda key, p, x: metrics.mu_fidelity(score, num_samples=4, **ALONG)(
        key, p, x, x
    ),
    "infidelity": lambda key, p, x: metrics.infidelity(noisy_score, num_samples=4)(key, p, x, x),
    "accuracy_drop": lambda key, p, x: sj.accuracy_drop(predict, num_samples=3)(
        key, p, ROWS, None, 0.1
    ),
    "sigma_for_accuracy_drop": lambda key, p, x: sj.sigma_for_accuracy_drop(
        predict, num_samples=3, num_steps=2, target=0.3, interval=(0.1, 10.0)
    )(key, p, ROWS),
}


PICTURE = jnp.linspace(-1.0, 2.0, 144).reshape(12, 12)
MASK = jnp.arange(144).reshape(12, 12) % 5 == 0
LAYERS = {"in": W, "out": jnp.array([1.0, -2.0, 0.5])}


def layered(p, x):
    return jnp.tanh(jax.nn.relu(x @ p["in"]) @ p["out"])


def rectified(p, x):
    return jax.nn.relu(x @ p["in"]) @ p["out"]


def faithfulness(p, x, attribution):
    return jnp.vdot(attribution, p[:, 0])


def searched(faithfulness):
    search = sj.spectral.best_cutoff(
        sj.smoothgrad(GRADIENT, 0.1, **DRAWS),
        faithfulness,
        [0.5, 1, jnp.inf],
        transform=lambda explain, cutoff: sj.lowpass(explain, cutoff, axes=(0,)),
    )
    return lambda key, p, x: search(key, p, ROWS)


OF_LAYERS = {
    "lrp": sj.lrp(layered, sj.attribution.lrp_rules.gamma()),
    "guided_backprop": sj.guided_backprop(layered),
    "deconvnet": sj.deconvnet(layered),
    "consistency": metrics.consistency(sj.saliency(layered), jax.tree.map(jnp.sin, LAYERS)),
}
SIMILARITIES = [metrics.spearman, metrics.pearson, metrics.cosine, metrics.ssim]
LOCALIZATION = [
    metrics.pointing_game,
    metrics.relevance_mass_accuracy,
    metrics.relevance_rank_accuracy,
    metrics.roc_auc,
]
MORE = {
    "smoothdiff": lambda key, p, x: sj.smoothdiff(rectified, 0.1, num_samples=4)(key, LAYERS, x),
    "parameter_randomization": lambda key, p, x: metrics.parameter_randomization(
        sj.saliency(layered), metrics.layers_at_depth(LAYERS)
    )(key, LAYERS, x),
    "parameter_randomization of a stochastic explainer": lambda key, p, x: (
        metrics.parameter_randomization(
            sj.smoothgrad(sj.saliency(layered), 0.1, **DRAWS), metrics.layers_at_depth(LAYERS)
        )(key, LAYERS, x)
    ),
    "random_logit": lambda key, p, x: metrics.random_logit(
        sj.saliency(lambda p, x, label: predict(p, x)[label]), 3, similarity=metrics.spearman
    )(key, p, x, 1),
    "distinct_classes": lambda key, p, x: metrics.distinct_classes(key, [0, 1, 1, 2], 2),
    "grid_pointing_game": lambda key, p, x: metrics.grid_pointing_game(PICTURE, (2, 2), 1),
    "best_cutoff": searched(faithfulness),
    "best_cutoff of a stochastic faithfulness": searched(
        sj.stochastic(lambda key, p, x, a: faithfulness(p, x, a) + jax.random.normal(key))
    ),
    **{
        name: lambda key, p, x, explain=explain: explain(LAYERS, x)
        for name, explain in OF_LAYERS.items()
    },
    **{one.__name__: lambda key, p, x, of=one: of(PICTURE, PICTURE.T) for one in SIMILARITIES},
    **{one.__name__: lambda key, p, x, of=one: of(PICTURE, MASK) for one in LOCALIZATION},
}
ALL = STOCHASTIC | MORE


@pytest.mark.parametrize("name", ALL)
def test_no_key_is_used_twice(name):
    with jax.debug_key_reuse(True):
        jax.jit(ALL[name]).lower(KEY, W, X)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in MORE)) for n in ALL]
)
@pytest.mark.slow
def test_no_tracer_leaks(name):
    with jax.checking_leaks():
        jax.make_jaxpr(ALL[name])(KEY, W, X)


NAN_FREE = ["smoothgrad", "hsic", "variance", "max_sensitivity", "rise", *MORE]


@pytest.mark.filterwarnings("ignore:best_cutoff. the curve is flat")
@pytest.mark.parametrize(
    "name", slow_but(NAN_FREE, "smoothgrad", "hsic", "variance", "smoothdiff", "lrp", "best_cutoff")
)
@pytest.mark.slow
def test_no_nan_on_the_way(name):
    with jax.debug_nans(True):
        ALL[name](KEY, W, X)


@pytest.mark.parametrize("weights", [jnp.arange(4.0), jnp.zeros(4)])
def test_hsic_makes_no_nan_of_scores_that_agree(weights):
    explain = sj.hsic(jnp.vdot, num_samples=8, **ALONG)
    with jax.debug_nans(True):
        assert jnp.all(jnp.isfinite(explain(KEY, weights, jnp.ones(4))))
