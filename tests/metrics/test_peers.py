"""Metrics against Quantus and Captum on the same arrays; runs where the `bench` extra is installed.

    pytest -m peers tests/metrics/test_peers.py

Quantus divides by the sum of an attribution and takes no magnitudes, so where it needs
non-negative maps it gets such. What differs by definition is said in the metric's docstring.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import smoothjax as sj
from smoothjax import metrics

quantus = pytest.importorskip("quantus")
torch = pytest.importorskip("torch")
captum_metrics = pytest.importorskip("captum.metrics")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]

NUM, SIZE, CLASSES = 64, 8, 3
RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(SIZE * SIZE, CLASSES)).astype(np.float32)
XS = RNG.normal(size=(NUM, 1, SIZE, SIZE)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, NUM)
MAPS = RNG.normal(size=XS.shape).astype(np.float32)
MASKS = (RNG.uniform(size=XS.shape) < 0.3).astype(np.float32)


class Model(torch.nn.Module):
    def forward(self, x):
        return torch.tanh(x.flatten(1)) @ torch.tensor(WEIGHTS)


def logit(params, x, label):
    return jnp.sum(jnp.tanh(x.ravel()) * params[:, label])


def probability(params, x, label):
    return jax.nn.softmax(jnp.tanh(x.ravel()) @ params)[label]


def gradient(model, inputs, targets, **_):
    with torch.enable_grad():  # Captum forbids gradients
        xs = torch.tensor(inputs, dtype=torch.float32).requires_grad_()
        scores = model(xs).gather(1, torch.tensor(targets).long()[:, None]).sum()
        return torch.autograd.grad(scores, xs)[0].numpy()


def theirs(metric, maps=MAPS, **options):
    np.random.seed(0)  # noqa: NPY002 (what Quantus draws from)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = metric(normalise=False, disable_warnings=True, return_aggregate=False, **options)
        scores = metric(
            model=Model().eval(),
            x_batch=XS,
            y_batch=LABELS,
            a_batch=maps.copy(),  # some write to it
            s_batch=MASKS,
            softmax=True,
            channel_first=True,
            device="cpu",
            explain_func=gradient,
        )
    return np.asarray(scores, float)


def ours(metric):
    """A metric of (params, x, attribution, label) on all examples."""
    return jax.jit(jax.vmap(metric, (None, 0, 0, 0)))(WEIGHTS, XS, MAPS, LABELS)


def test_pixel_flipping():
    metric = metrics.deletion_curve(probability, num_steps=16)
    got = np.asarray(ours(metric).value)
    want = theirs(quantus.PixelFlipping, features_in_step=4, perturb_baseline=0.0)
    np.testing.assert_allclose(got[:, 1:], want, atol=1e-6)


@pytest.mark.parametrize(
    ("metric", "peer"),
    [(metrics.gini, quantus.Sparseness), (metrics.entropy, quantus.Complexity)],
)
def test_complexity(metric, peer):
    got = jax.vmap(metric)(jnp.abs(MAPS))
    np.testing.assert_allclose(got, theirs(peer, np.abs(MAPS)), rtol=1e-4)


@pytest.mark.parametrize(
    ("metric", "peer"),
    [
        (metrics.relevance_mass_accuracy, quantus.RelevanceMassAccuracy),
        (metrics.relevance_rank_accuracy, quantus.RelevanceRankAccuracy),
        (metrics.roc_auc, quantus.AUC),
        (metrics.pointing_game, quantus.PointingGame),
    ],
)
def test_localization(metric, peer):
    maps = np.abs(MAPS)
    got = jax.vmap(metric)(maps, MASKS)
    np.testing.assert_allclose(got, theirs(peer, maps), rtol=1e-5)


def check_equal_in_distribution(got, want):
    """Of the mean, and of the spread over examples, which share x but not the draws."""
    gap = np.asarray(got, float) - want
    assert scipy.stats.ttest_1samp(gap, 0).pvalue > 1e-3
    assert scipy.stats.ks_2samp(np.asarray(got), want).pvalue > 1e-3


def test_faithfulness_correlation():
    metric = metrics.faithfulness_correlation(probability, subset_size=16, num_samples=200)
    keys = jax.random.split(jax.random.key(0), NUM)
    explain = sj.saliency(probability)
    maps = np.asarray(jax.vmap(explain, (None, 0, 0))(WEIGHTS, XS, LABELS)) * XS
    got = jax.jit(jax.vmap(metric, (0, None, 0, 0, 0)))(keys, WEIGHTS, XS, maps, LABELS)
    want = theirs(
        quantus.FaithfulnessCorrelation, maps, nr_runs=200, subset_size=16, perturb_baseline=0.0
    )
    assert np.mean(want) > 0.5  # not two zeros
    check_equal_in_distribution(got, want)


@pytest.mark.parametrize(
    ("metric", "peer"),
    [
        (metrics.max_sensitivity, quantus.MaxSensitivity),
        (metrics.average_sensitivity, quantus.AvgSensitivity),
    ],
)
def test_robustness(metric, peer):
    metric = metric(sj.saliency(logit), radius=0.1, num_samples=20)
    keys = jax.random.split(jax.random.key(0), NUM)
    got = jax.jit(jax.vmap(metric, (0, None, 0, 0)))(keys, WEIGHTS, XS, LABELS)
    want = theirs(peer, gradient(Model(), XS, LABELS), nr_samples=20, lower_bound=0.1)
    check_equal_in_distribution(got, want)


def test_infidelity():
    change = RNG.normal(size=XS.shape[1:]).astype(np.float32)
    metric = metrics.infidelity(
        logit, num_samples=1, perturbation=lambda key, x: jnp.asarray(change)
    )
    got = ours(functools.partial(metric, jax.random.key(0)))
    want = captum_metrics.infidelity(
        Model(),
        lambda x: (torch.tensor(change).expand_as(x), x - torch.tensor(change)),
        torch.tensor(XS),
        torch.tensor(MAPS),
        target=torch.tensor(LABELS),
        n_perturb_samples=1,
    )
    np.testing.assert_allclose(got, want.numpy(), rtol=1e-4)


def test_sensitivity_of_captum():
    metric = metrics.max_sensitivity(sj.saliency(logit), radius=0.1, num_samples=20)
    keys = jax.random.split(jax.random.key(1), NUM)
    got = jax.jit(jax.vmap(metric, (0, None, 0, 0)))(keys, WEIGHTS, XS, LABELS)

    def explain(xs, target):
        return (torch.tensor(gradient(Model(), xs[0].numpy(), target.numpy())),)

    want = captum_metrics.sensitivity_max(
        explain,
        torch.tensor(XS),
        perturb_radius=0.1,
        n_perturb_samples=20,
        target=torch.tensor(LABELS),
    )
    check_equal_in_distribution(got, want.numpy())
