"""Choosing the weight noise: the accuracy that a level costs, the level that costs so much."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax import reductions
from smoothjax.reductions import Estimate
from smoothjax.smoothing import noisegrad
from smoothjax.transform import check_at_least, check_callable, named

PyTree = Any


_OF_KEY = inspect.signature(lambda key, /: None)


class SigmaEstimate(NamedTuple):
    """A noise level found by search.

    Attributes:
      sigma: the level, a scalar; NaN if no level in the searched interval has the target drop.
      stderr: its standard error: that of the drop, divided by the drop's slope at sigma.
      drop: the accuracy drop at sigma, an `Estimate`.
    """

    sigma: jax.Array
    stderr: jax.Array
    drop: Estimate


def accuracy_drop(
    predict: Callable[..., jax.Array],
    params: PyTree,
    xs: PyTree,
    labels: Any,
    sigma: Any,
    *,
    num_samples: int = 25,
    where: Any = None,
    sampler: Callable[..., jax.Array] = jax.random.normal,
    batch_size: int = 25,
) -> Callable[[jax.Array], Estimate]:
    """Returns a function of a key that estimates the share of accuracy which weight noise destroys.

    `1 - (accuracy(sigma) - chance) / (accuracy(0) - chance)`, with `accuracy(sigma)` the mean over
    draws of the weights: 0 for no loss, 1 at chance. The weights are those that `noisegrad` draws
    with the same key, level, mask and sampler.

    Args:
      predict: a function `predict(params, x)` from one example to logits of shape (num_classes,).
        Chance is `1 / num_classes`.
      params: the weights, a pytree.
      xs: examples, stacked along the leading axis of each leaf.
      labels: integers of shape (num_examples,), or None: the clean predictions stand in for them.
      sigma: the noise level, as in `noisegrad`; may be traced.
      num_samples: the number of draws of the weights, at least 2.
      where: which leaves to perturb, as in `noisegrad`.
      sampler: as in `noisegrad`.
      batch_size: how many examples are predicted at once; memory only.

    Returns:
      A function `drop(key)` that returns an `Estimate` of scalars. Its standard error covers both
      the draws of the weights and the choice of the examples, taken as a sample of a larger
      population. NaN where the network without noise is no better than chance.

    Raises:
      TypeError, ValueError: for bad settings, and for labels that do not fit the examples.

    Cost: `(num_samples + 1) * num_examples` evaluations of `predict`. Large `xs` are better passed
    as an argument: build the function inside the jitted one.

    Source: Bykov et al. 2022, arXiv 2106.10185.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> predict = lambda params, x: jnp.stack([0.0, 1.0]) * (params @ x)
    >>> xs = jax.random.normal(jax.random.key(1), (100, 3))
    >>> drop = jax.jit(sj.accuracy_drop(predict, jnp.ones(3), xs, None, sigma=0.1))
    >>> bool(0 < drop(jax.random.key(0)).mean < 0.2)
    True
    """
    name = "accuracy_drop"
    check_callable(predict, name)
    check_at_least(batch_size, 1, f"{name}: batch_size")
    num_examples = _check_examples(name, xs, labels)

    def logits_of(params):
        return jax.lax.map(lambda x: predict(params, x), xs, batch_size=batch_size)

    def correct(params, truth):
        right = (jnp.argmax(logits_of(params), axis=-1) == truth).astype(jnp.float32)
        return right, jnp.mean(right)

    noisy_correct = noisegrad(
        correct,
        sigma,
        num_samples=num_samples,
        where=where,
        sampler=sampler,
        reduction=reductions.mean_and_stderr(),
    )

    @named(name, predict, takes_key=True, signature=_OF_KEY)
    def drop(key):
        logits = logits_of(params)
        if logits.ndim != 2:
            raise ValueError(
                f"{name}: predict(params, x) must return logits of shape (num_classes,) for one "
                f"example; got shape {logits.shape[1:]}."
            )
        num_classes = logits.shape[-1]
        _check_labels(name, labels, num_classes)
        chance = 1 / num_classes
        truth = jnp.argmax(logits, axis=-1) if labels is None else jnp.asarray(labels)
        before, accuracy_before = correct(params, truth)
        (after, accuracy), (_, draws_error), n = noisy_correct(key, params, truth)
        # At chance there is nothing to lose, and what seems lost would be noise.
        span = jnp.where(accuracy_before > chance, accuracy_before - chance, jnp.nan)
        kept = (accuracy - chance) / span
        # The delta method for a ratio of means over examples, and over draws.
        influence = (after - chance - kept * (before - chance)) / span
        examples_error2 = jnp.sum(influence**2) / (num_examples * (num_examples - 1))
        return Estimate(1 - kept, jnp.sqrt(examples_error2 + (draws_error / span) ** 2), n)

    return drop


def sigma_for_accuracy_drop(
    predict: Callable[..., jax.Array],
    params: PyTree,
    xs: PyTree,
    labels: Any = None,
    *,
    target: float = 0.05,
    interval: tuple[float, float] = (1e-4, 1.0),
    num_steps: int = 10,
    num_samples: int = 25,
    where: Any = None,
    sampler: Callable[..., jax.Array] = jax.random.normal,
    batch_size: int = 25,
) -> Callable[[jax.Array], SigmaEstimate]:
    """Returns a function of a key that finds the weight noise which costs a share of accuracy.

    The paper's rule: the level at which `accuracy_drop` is 5 %. `noisegrad` takes it as it is,
    `fusiongrad` half of it. It is found by bisection of the logarithm of the level, with the same
    draws of noise at every level.

    Args:
      predict: a function `predict(params, x)` from one example to logits of shape (num_classes,).
      params: the weights, a pytree.
      xs: examples, stacked along the leading axis of each leaf.
      labels: integers of shape (num_examples,), or None: the clean predictions stand in for them.
      target: the accuracy drop to reach, inside (0, 1).
      interval: the least and the largest level to consider.
      num_steps: the number of bisections: the last interval is `2**-num_steps` of the first one, in
        logarithms.
      num_samples: the number of draws of the weights at each level.
      where: which leaves to perturb, as in `noisegrad`.
      sampler: as in `noisegrad`.
      batch_size: how many examples are predicted at once; memory only.

    Returns:
      A function `find(key)` that returns a `SigmaEstimate`: the level, its standard error, and the
      drop there. Where the drop never crosses the target, the level is NaN.

    Raises:
      TypeError, ValueError: for bad settings, and for labels that do not fit the examples.

    Cost: that of `num_steps + 3` calls of `accuracy_drop`. It is one compiled loop also without
    `jax.jit`, which would make constants of the examples.

    Source: Bykov et al. 2022, arXiv 2106.10185.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> predict = lambda params, x: jnp.stack([0.0, 1.0]) * (params @ x)
    >>> xs = jax.random.normal(jax.random.key(1), (100, 3))
    >>> found = sj.sigma_for_accuracy_drop(predict, jnp.ones(3), xs)(jax.random.key(0))
    >>> bool(0.01 < found.sigma < 0.2)
    True
    """
    name = "sigma_for_accuracy_drop"
    if not 0 < target < 1:
        raise ValueError(f"{name}: target must be inside (0, 1), like 0.05; got {target}.")
    low, high = interval
    if not 0 < low < high:
        raise ValueError(
            f"{name}: interval must be (low, high) with 0 < low < high; got {interval}."
        )
    check_at_least(num_steps, 1, f"{name}: num_steps")

    def drop_at(log_sigma):
        return accuracy_drop(
            predict,
            params,
            xs,
            labels,
            jnp.exp(log_sigma),
            num_samples=num_samples,
            where=where,
            sampler=sampler,
            batch_size=batch_size,
        )

    drop_at(0.0)  # checks the settings when building

    @named(name, predict, takes_key=True, signature=_OF_KEY)
    def find(key):
        def bisect(_, state):
            low, high, seen_below, seen_above = state
            middle = (low + high) / 2
            below = drop_at(middle)(key).mean < target
            return (
                jnp.where(below, middle, low),
                jnp.where(below, high, middle),
                seen_below | below,
                seen_above | ~below,
            )

        start = (jnp.log(low), jnp.log(high), jnp.array(False), jnp.array(False))
        low_end, high_end, seen_below, seen_above = jax.lax.fori_loop(0, num_steps, bisect, start)
        log_sigma = (low_end + high_end) / 2
        # Points far enough apart that the slope is not that of single examples changing sides.
        around = jnp.stack([log_sigma, log_sigma - 0.3, log_sigma + 0.3])
        drops = jax.lax.map(lambda log_sigma: drop_at(log_sigma)(key), around)
        drop = jax.tree.map(lambda leaf: leaf[0], drops)
        sigma = jnp.where(seen_below & seen_above, jnp.exp(log_sigma), jnp.nan)
        slope = (drops.mean[2] - drops.mean[1]) / 0.6
        return SigmaEstimate(sigma, sigma * drop.stderr / jnp.abs(slope), drop)

    return find


def _check_labels(name, labels, num_classes):
    if labels is None or isinstance(labels, Tracer):
        return
    least, most = np.min(np.asarray(labels)), np.max(np.asarray(labels))
    if least < 0 or most >= num_classes:
        raise ValueError(
            f"{name}: labels must be from 0 to {num_classes - 1}, since predict returns "
            f"{num_classes} logits; got {least} to {most}."
        )


def _check_examples(name, xs, labels):
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(xs)}
    if len(sizes) != 1 or sizes & {(), (0,), (1,)}:
        raise ValueError(
            f"{name}: xs are examples stacked along a leading axis, of one length, at least 2; got "
            f"leaves of shapes {[np.shape(leaf) for leaf in jax.tree.leaves(xs)]}."
        )
    ((num_examples,),) = sizes
    if labels is not None:
        dtype = jnp.asarray(labels).dtype
        if np.shape(labels) != (num_examples,) or not jnp.issubdtype(dtype, jnp.integer):
            raise ValueError(
                f"{name}: labels must be integers of shape ({num_examples},), one for each "
                f"example; got shape {np.shape(labels)} and dtype {dtype}."
            )
    return num_examples
