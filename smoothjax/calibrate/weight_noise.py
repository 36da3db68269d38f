"""Choosing the weight noise: the accuracy that a level costs, the level that costs so much."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax import reductions
from smoothjax._box_muller import box_muller
from smoothjax._checks import (
    check_function,
    check_integer,
    check_leading_axis,
    check_number,
    require,
)
from smoothjax._transform import transform
from smoothjax._trees import is_real, wide_dtype
from smoothjax._typing import Sampler
from smoothjax.reductions import Estimate
from smoothjax.smoothing import noisegrad

Predict = Callable[..., Any]
Quality = Callable[..., jax.Array]

# How many groups of examples are left out in turn.
_GROUPS = 20


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


@transform(takes_key=True)
def accuracy_drop(
    predict: Predict,
    *,
    quality: Quality | None = None,
    chance: float = 0.0,
    num_samples: int = 25,
    where: Any = None,
    sampler: Sampler = box_muller,
    batch_size: int = 25,
) -> Callable[..., Estimate]:
    """Returns a function that estimates the share of accuracy which weight noise destroys.

    `1 - (accuracy(sigma) - chance) / (accuracy(0) - chance)`, with `accuracy(sigma)` the mean over
    draws of the weights: 0 for no loss, 1 at chance. The weights are those that `noisegrad` draws
    with the same key, level, mask and sampler. Another `quality` takes the place of accuracy for
    regression, segmentation, or a single logit.

    Args:
      predict: a function `predict(params, x)` from one example to logits of shape (num_classes,);
        with a quality, to anything.
      quality: a function `quality(outputs, targets)` that returns a scalar, more for better, of
        what `predict` returns for many examples, stacked along a leading axis: R2, the intersection
        over union, or for one logit, a scalar,
        `lambda outputs, targets: jnp.mean((outputs > 0) == (targets > 0))` with chance 0.5. None is
        the accuracy of the greatest logit.
      chance: the quality of a network that knows nothing; of accuracy it is `1 / num_classes`,
        whatever is given.
      num_samples: the number of draws of the weights, at least 2.
      where: which leaves to perturb, as in `noisegrad`.
      sampler: as in `noisegrad`.
      batch_size: how many examples are predicted at once; memory only.

    Returns:
      A function `drop(key, params, xs, targets, sigma)` that returns an `Estimate` of scalars: xs
      are examples, stacked along the leading axis of each leaf; targets the labels, integers of
      shape (num_examples,), or what the quality compares with, stacked; or None, and then the clean
      predictions stand in for them, with a quality the clean outputs; sigma the noise level, as in
      `noisegrad`. The standard error covers both the draws of the weights and the choice of the
      examples, taken as a sample of a larger population: of a quality by the jackknife, leaving out
      one of 20 groups of examples. NaN where the network without noise is no better than chance,
      or a traced label is none of its classes: leave out examples to ignore.

    Raises:
      TypeError, ValueError: here for bad settings; when called, for labels that do not fit the
        examples.

    Cost: `(num_samples + 1) * num_examples` evaluations of `predict`; of a quality, 21 for a draw.

    Source: Bykov et al. 2022, arXiv 2106.10185.

    >>> predict = lambda params, x: jnp.stack([0.0, 1.0]) * (params @ x)
    >>> xs = jax.random.normal(jax.random.key(1), (100, 3))
    >>> drop = jax.jit(sj.accuracy_drop(predict))
    >>> bool(0 < drop(jax.random.key(0), jnp.ones(3), xs, None, 0.1).mean < 0.2)
    True
    """
    batch_size = check_integer(batch_size, "batch_size", least=1)
    if quality is not None:
        check_function(quality, "quality")
    chance = check_number(chance, "chance")

    def outputs_of(params, xs):
        return jax.lax.map(lambda x: predict(params, x), xs, batch_size=batch_size)

    def judged(outputs, targets):
        """Values of which the accuracy or quality is the mean, at least nearly, and itself."""
        if quality is not None:
            return _jackknife(quality, outputs, targets)
        known = ~jnp.any(jnp.isnan(outputs), axis=-1)  # NaN would be the greatest
        right = ((jnp.argmax(outputs, axis=-1) == targets) & known).astype(jnp.float32)
        return right, jnp.mean(right)

    def measure(params, xs, targets):
        return judged(outputs_of(params, xs), targets)

    noisy = functools.partial(
        noisegrad,
        measure,
        num_samples=num_samples,
        where=where,
        sampler=sampler,
        reduction=reductions.mean_and_stderr(),
    )
    noisy(0.0)  # checks the settings when building

    def drop(key, params, xs, targets, sigma):
        num_examples = check_leading_axis(xs, "xs", least=2)
        outputs = outputs_of(params, xs)
        if quality is None:
            _check_logits(outputs)
            _check_labels(targets, num_examples, num_classes=outputs.shape[1])
            worst = 1 / outputs.shape[1]
            targets = jnp.argmax(outputs, axis=-1) if targets is None else jnp.asarray(targets)
            there = jnp.all((0 <= targets) & (targets < outputs.shape[1]))
        else:
            worst, there = chance, True
            targets = outputs if targets is None else targets
            num = check_leading_axis(targets, "targets")
            require(num == num_examples, f"there are {num} targets for {num_examples} examples.")
            _check_aligned(outputs, targets)
        before, accuracy_before = judged(outputs, targets)
        (after, accuracy), (_, draws_error), n = noisy(sigma)(key, params, xs, targets)
        # At chance there is nothing to lose, and what seems lost would be noise.
        lossy = (accuracy_before > worst) & there
        span = jnp.where(lossy, accuracy_before - worst, jnp.nan)
        kept = (accuracy - worst) / span
        # The delta method for a ratio of means over examples, and over draws.
        influence = (after - worst - kept * (before - worst)) / span
        examples_error2 = jnp.sum(influence**2) / (influence.size * (influence.size - 1))
        return Estimate(1 - kept, jnp.sqrt(examples_error2 + (draws_error / span) ** 2), n)

    return drop


@transform(takes_key=True)
def sigma_for_accuracy_drop(
    predict: Predict,
    *,
    quality: Quality | None = None,
    chance: float = 0.0,
    target: float = 0.05,
    interval: tuple[float, float] = (1e-4, 1.0),
    num_steps: int = 10,
    num_samples: int = 25,
    where: Any = None,
    sampler: Sampler = box_muller,
    batch_size: int = 25,
) -> Callable[..., SigmaEstimate]:
    """Returns a function that finds the weight noise which costs a share of the accuracy.

    The paper's rule: the level at which `accuracy_drop` is 5 %. `noisegrad` takes it as it is,
    `fusiongrad` half of it. It is found by bisection of the logarithm of the level, with the same
    draws of noise at every level.

    Args:
      predict: a function `predict(params, x)` of one example, as in `accuracy_drop`.
      quality: what takes the place of accuracy, as in `accuracy_drop`: R2, one logit's sign.
      chance: the quality of a network that knows nothing, as in `accuracy_drop`.
      target: the accuracy drop to reach, above 0 and below 1.
      interval: the least and the largest level to consider.
      num_steps: the number of bisections: the last interval is `2**-num_steps` of the first one, in
        logarithms.
      num_samples: the number of draws of the weights at each level.
      where: which leaves to perturb, as in `noisegrad`.
      sampler: as in `noisegrad`.
      batch_size: how many examples are predicted at once; memory only.

    Returns:
      A function `find(key, params, xs, targets=None)` that returns a `SigmaEstimate`: the level,
      its standard error, and the drop there. xs and targets are those of `accuracy_drop`. Where the
      drop never crosses the target, the level is NaN.

    Raises:
      TypeError, ValueError: here for bad settings; when called, for labels that do not fit the
        examples.

    Cost: that of `num_steps + 3` calls of `accuracy_drop`, in one compiled loop.

    Source: Bykov et al. 2022, arXiv 2106.10185.

    >>> predict = lambda params, x: jnp.stack([0.0, 1.0]) * (params @ x)
    >>> xs = jax.random.normal(jax.random.key(1), (100, 3))
    >>> find = jax.jit(sj.sigma_for_accuracy_drop(predict))
    >>> bool(0.01 < find(jax.random.key(0), jnp.ones(3), xs).sigma < 0.2)
    True
    """
    target = check_number(target, "target", above=0, below=1)
    low, high = interval
    require(0 < low < high, f"interval must be (low, high) with 0 < low < high; got {interval}.")
    num_steps = check_integer(num_steps, "num_steps", least=1)
    drop = accuracy_drop(
        predict,
        quality=quality,
        chance=chance,
        num_samples=num_samples,
        where=where,
        sampler=sampler,
        batch_size=batch_size,
    )

    def find(key, params, xs, targets=None):
        def drop_at(log_sigma):
            same = jax.random.clone(key)  # which says to JAX's checker of keys that it is meant
            return drop(same, params, xs, targets, jnp.exp(log_sigma))

        def bisect(_, state):
            low, high, seen_below, seen_above = state
            middle = (low + high) / 2
            below = drop_at(middle).mean < target
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
        drops = jax.lax.map(drop_at, jnp.stack([log_sigma, log_sigma - 0.3, log_sigma + 0.3]))
        here = jax.tree.map(lambda leaf: leaf[0], drops)
        sigma = jnp.where(seen_below & seen_above, jnp.exp(log_sigma), jnp.nan)
        slope = (drops.mean[2] - drops.mean[1]) / 0.6
        return SigmaEstimate(sigma, sigma * here.stderr / jnp.abs(slope), here)

    return find


def _jackknife(quality, outputs, targets):
    """The pseudo-values of a quality, of groups of examples, and the quality of all."""
    outputs, targets = jax.tree.map(jnp.asarray, (outputs, targets))

    def quality_of(outputs, targets):
        found = jnp.asarray(quality(outputs, targets))
        require(
            found.shape == () and is_real(found),
            "quality(outputs, targets) must return a real scalar for all examples; got shape "
            f"{found.shape} and dtype {found.dtype}. Take the mean of what is one for each.",
            TypeError,
        )
        return found.astype(wide_dtype(found.dtype))

    def quality_without(others):
        return quality_of(*jax.tree.map(lambda leaf: leaf[others], (outputs, targets)))

    num = len(jax.tree.leaves(outputs)[0])
    groups, everyone = min(num, _GROUPS), np.arange(num)
    # Every so many, since examples may come in order; of one size each, to be evaluated in a loop.
    left_out = [everyone[group::groups][: num // groups] for group in range(groups)]
    others = np.stack([np.delete(everyone, group) for group in left_out])
    rest, whole = jax.lax.map(quality_without, others), quality_of(outputs, targets)
    # Factor groups - 1 if each example is in a group. Where some are in none, the groups' means
    # scatter less about the mean of all, and that has the error of all examples.
    reach = np.sqrt((groups - 1) * (num / len(left_out[0]) - 1)).item()
    return whole + reach * (whole - rest), whole


def _check_aligned(outputs, targets):
    """Raises for (n, 1) beside (n,), which together are (n, n)."""
    if jax.tree.structure(outputs) != jax.tree.structure(targets):
        return
    for of_output, of_target in zip(*map(jax.tree.leaves, (outputs, targets)), strict=True):
        shapes = np.shape(of_output), np.shape(of_target)
        columns = shapes[0] != shapes[1] and {len(s) for s in shapes} == {1, 2}
        require(
            not columns or max(shapes, key=len)[1] != 1,
            f"outputs of shape {shapes[0]} and targets of shape {shapes[1]} would be compared each "
            "with each. Return a scalar for each example, and give a target of shape "
            f"{shapes[0][:1]}.",
        )


def _check_logits(outputs):
    shape = jnp.shape(outputs) if jax.tree_util.all_leaves([outputs]) else (0,)
    require(
        len(shape) == 2 and shape[1] > 1,
        "predict(params, x) must return logits of shape (num_classes,) for one example, of two or "
        f"more classes; got {'a pytree' if shape == (0,) else f'shape {shape[1:]}'}. For other "
        "networks give a quality(outputs, targets); for one logit return a scalar, and type "
        "`lambda outputs, targets: jnp.mean((outputs > 0) == (targets > 0))` with chance=0.5.",
    )


def _check_labels(labels, num_examples, num_classes):
    if labels is None:
        return
    dtype = jnp.asarray(labels).dtype
    require(
        np.shape(labels) == (num_examples,) and jnp.issubdtype(dtype, jnp.integer),
        f"targets must be integer labels of shape ({num_examples},), one for each example; got "
        f"shape {np.shape(labels)} and dtype {dtype}.",
    )
    if isinstance(labels, Tracer):
        return
    least, most = np.min(np.asarray(labels)), np.max(np.asarray(labels))
    require(
        0 <= least and most < num_classes,
        f"targets must be labels from 0 to {num_classes - 1}, since predict returns {num_classes} "
        f"logits; got {least} to {most}.",
    )
