"""The cut-off at which maps are most faithful, searched for on examples."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax._checks import check_function, check_leading_axis, check_scalar, require
from smoothjax._statistics import t_test
from smoothjax._transform import is_stochastic, keyed, noting, transform
from smoothjax._typing import Explainer, Metric
from smoothjax.reductions import png, summary
from smoothjax.spectral._fourier import check_cutoff
from smoothjax.spectral.filters import forgrad


@summary
class CutoffSearch(NamedTuple):
    """How faithful the maps are at each cut-off, and which cut-off to take.

    Attributes:
      cutoffs: the cut-offs that were tried, shape (cutoffs,).
      mean: the mean faithfulness over the examples at each of them.
      stderr: the standard error of each mean. Neighbours share their examples, so compare two
        cut-offs by the differences of their `scores`, not by these.
      scores: the faithfulness of each example at each cut-off, shape (examples, cutoffs).
      best: the cut-off of the highest mean, the first of equals; NaN if a mean is NaN.
      parsimonious: the smallest cut-off, so the most filtering, whose mean is within one paired
        standard error of the best.
      flat: whether no cut-off can be told from the best: a bool, True where a score is NaN.
    """

    cutoffs: jax.Array
    mean: jax.Array
    stderr: jax.Array
    scores: jax.Array
    best: jax.Array
    parsimonious: jax.Array
    flat: jax.Array

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows, where matplotlib is installed."""
        return png("best_cutoff", self) if np.ndim(self.cutoffs) == 1 else None


def _either_takes_key(settings):
    return is_stochastic(settings["explain"]) or is_stochastic(settings["faithfulness"])


@transform(takes_key=_either_takes_key)
def best_cutoff(
    explain: Explainer,
    faithfulness: Metric,
    cutoffs: Sequence[Any],
    *,
    transform: Callable[[Explainer, Any], Explainer] = forgrad,
) -> Callable[..., CutoffSearch]:
    """Returns a function of data that finds the cut-off of the most faithful maps on average.

    Each attribution is computed once, then filtered and scored at every cut-off. Standard errors of
    differences from the best are paired: taken over the examples' own differences, since examples
    differ from each other far more than cut-offs do. The curve is flat if no cut-off differs from
    the best by a two-sided paired t-test at 5 %, corrected for the number of pairs (Bonferroni), as
    the best was picked after looking. Then a `UserWarning` says so; under `jax.jit`, which cannot
    warn, read the flag.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      faithfulness: a function `faithfulness(params, x, attribution, *rest)` to a scalar, higher for
        better, such as insertion minus deletion; or a stochastic one, whose key is the same for all
        cut-offs of an example.
      cutoffs: two or more radii in cycles per image; `inf` stands for no filter.
      transform: what `transform(explain, cutoff)` to tune, a function that takes a traced cut-off:
        `forgrad`, `lowpass`, or one of yours, like
        `lambda explain, cutoff: lowpass(pool(explain, jnp.sum), cutoff)`.

    Returns:
      A function `search(params, xs, *rest)`, with a key first if `explain` or `faithfulness` is
      stochastic, to a `CutoffSearch`. `xs` and each of `rest` have a leading axis of two or more
      examples, of independent noise: example i uses `fold_in(key, i)`.

    Raises:
      TypeError, ValueError: here for a bad cut-off or an argument that is no function; when called,
        for fewer than two examples, or a faithfulness that is no scalar.

    Cost: for each example one evaluation of `explain` and one of `faithfulness` for every cut-off,
    one after the other, so in the memory of one.

    Source: Muzellec et al. 2024, arXiv 2307.09591, who take the best.

    >>> smooth = jnp.cos(2 * jnp.pi * jnp.arange(16.0) / 16)[:, None]
    >>> def faithfulness(params, x, attribution):
    ...     return -jnp.sum((attribution - smooth) ** 2)
    >>> lowpass = functools.partial(sj.lowpass, axes=(0,))
    >>> search = sj.spectral.best_cutoff(
    ...     lambda params, x: x, faithfulness, [0, 2, 8], transform=lowpass
    ... )
    >>> xs = smooth[None] + jax.random.normal(jax.random.key(0), (20, 16, 1))
    >>> found = jax.jit(search)(None, xs)
    >>> print(found.best, found.parsimonious, found.flat)
    2.0 2.0 False
    """
    check_function(faithfulness, "faithfulness")
    check_function(transform, "transform")
    require(
        np.iterable(cutoffs) and len(cutoffs) > 1,
        f"cutoffs must be two or more numbers, such as [5, 15, math.inf]; got {cutoffs!r:.80}.",
    )
    cutoffs = [check_cutoff(cutoff, "each of cutoffs") for cutoff in cutoffs]
    attribute, judge = keyed(explain), keyed(faithfulness)

    def search(key, params, xs, *rest):
        num = check_leading_axis((xs, rest), "xs and what follows it", least=2)
        tried = jnp.asarray(cutoffs, float)

        def of_example(example):
            index, x, rest = example
            map_key = judge_key = None
            if key is not None:
                map_key, judge_key = jax.random.split(jax.random.fold_in(key, index))
            attribution = attribute(map_key, params, x, *rest)

            def of_cutoff(cutoff):
                filtered = transform(lambda: attribution, cutoff)()
                # The same key for all cut-offs: JAX's checker of keys learns it is meant.
                same = None if judge_key is None else jax.random.clone(judge_key)
                with noting("faithfulness"):
                    return check_scalar(judge(same, params, x, filtered, *rest))

            return jax.lax.map(of_cutoff, tried)

        found = _choose(tried, jax.lax.map(of_example, (jnp.arange(num), xs, rest)))
        if not isinstance(found.flat, Tracer) and found.flat:
            warnings.warn(
                f"best_cutoff: the curve is flat within its errors: on {num} examples no cut-off "
                f"differs from the best ({found.best:g}) beyond chance. Give it more examples, or "
                "take its `parsimonious`.",
                stacklevel=3,
            )
        return found

    return search


def _choose(cutoffs, scores):
    num, tried = scores.shape

    def mean_and_error(values):
        return jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1) / np.sqrt(num).item()

    mean, stderr = mean_and_error(scores)
    top = jnp.argmax(mean)
    gap, error = mean_and_error(scores[:, top][:, None] - scores)
    known = jnp.where(jnp.isnan(mean[top]), jnp.nan, cutoffs)
    parsimonious = jnp.min(jnp.where(gap > error, jnp.inf, known))

    # The test would be of 0 / 0 for the best itself.
    same = gap == 0
    chance = jnp.where(same, 1, t_test(gap, jnp.where(same, 1, error), num))
    flat = ~(jnp.min(chance) * (tried * (tried - 1) / 2) <= 0.05)  # also where a score is NaN
    return CutoffSearch(cutoffs, mean, stderr, scores, known[top], parsimonious, flat)
