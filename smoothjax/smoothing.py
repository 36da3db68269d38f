"""The smoothing transforms: averages of an explanation over noise on its inputs or its weights.

Each takes an explainer `explain(params, x, *rest)` and returns `smoothed(key, params, x, *rest)`.
They differ in which argument the noise is on, how it is combined, how large it is, and what is
taken of the draws. What they share, the draw itself, is `_smooth`, at the end.
"""

from typing import Any

import jax
from jax.sharding import NamedSharding

from smoothjax import reductions
from smoothjax._box_muller import box_muller
from smoothjax._checks import check_integer
from smoothjax._loop import monte_carlo
from smoothjax._perturb import additive, multiplicative, perturbation
from smoothjax._transform import at_argument, transform
from smoothjax._typing import Explainer, Sampler
from smoothjax.noise import adaptive, relative
from smoothjax.reductions import Reduction


@transform(takes_key=True)
def smoothgrad(
    explain: Explainer,
    sigma: Any = relative(0.15),
    *,
    num_samples: int = 50,
    argnum: int = 1,
    where: Any = None,
    sampler: Sampler = box_muller,
    reduction: Reduction = reductions.mean(),
    chunk_size: int | None = None,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> Explainer:
    """Returns an explainer that averages `explain` over noise added to an argument, by default x.

    `smoothed(key, params, x, *rest) = mean_i explain(params, x + sigma * eps_i, *rest)`, with
    `eps_i` drawn by the sampler, standard normal by default.

    **The default level is one for photos**, 15 % of max - min over all of x. Features in units of
    their own, as those of tables, would all get the noise of the one with the greatest numbers:
    type `relative(0.15, examples)` for them.

    Args:
      explain: a function `explain(params, x, *rest)`, such as `jax.grad(score, argnums=1)`, that
        returns a pytree of arrays; or a stochastic one, with a key first.
      sigma: the noise level in the argument's own units: a number or array that broadcasts to each
        leaf; a rule, which is a function of the argument that returns those, such as
        `relative(0.15)` (15 % of max - min), `relative(0.15, examples)` (of the range of each
        feature, for tabular data) or `adaptive(bounds)`; or a pytree prefix of numbers, arrays and
        rules. It may be traced.
      num_samples: the number of draws.
      argnum: the argument that the noise is on, counted from 0 after the key: 1 is x. Of a pytree,
        floating-point array leaves are perturbed, and the rest passes untouched.
      where: which leaves to perturb: a pytree prefix of bools, or a function of the argument that
        returns one, such as `by_path(...)`. None means all; one level by range for several leaves
        needs it, since one may be a mask of floats.
      sampler: a function `(key, shape, dtype)` of independent draws, of mean 0 and variance 1, like
        those of `jax.random`. A number must depend on the key and its position only: large leaves
        are drawn in their shape, small ones take the first numbers of a flat block.
      reduction: what becomes of the draws, from `smoothjax.reductions`.
      chunk_size: how many draws are evaluated at once. It bounds memory and changes no result
        beyond rounding. None: 10 for x of the size of a photo, up to 50 for a smaller one; 10 with
        `tolerance` or `sharding`.
      tolerance: if given, draw no more once the relative error of the map is below it
        (`smoothjax.reductions.relative_error`, estimated after each chunk, from 16 draws on);
        `num_samples` is then the most. With `mean` and `mean_and_stderr` only. Under `jax.vmap` the
        batch stops together, when its worst map is good enough. Reverse mode needs a fixed number.
      sharding: if given, a `NamedSharding` for the axis of the draws of a chunk, by which they are
        spread over devices; they must divide evenly.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)`, whose result is structured, shaped
      and typed like that of `explain` (with the default reduction). Keyword arguments pass through.

    Raises:
      TypeError, ValueError: here for bad settings; when called, before anything runs, for a missing
        or wrong key, too few arguments, an argument without floating-point arrays, or levels and
        masks that do not fit it.

    Cost: `num_samples` evaluations of `explain`, the memory of `chunk_size` of them.
    Differentiating through it evaluates each draw again, so that the memory of reverse mode does
    not grow with `num_samples`. For second derivatives that holds forward over reverse, as in
    `jax.hessian`, not for `jax.grad` of `jax.grad`.

    Source: Smilkov et al. 2017, arXiv 1706.03825.

    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> explain = jax.jit(sj.smoothgrad(jax.grad(score, argnums=1), sigma=0.01))
    >>> explain(jax.random.key(0), jnp.ones(3), jnp.array([1.0, 2.0, 3.0])).round(1)
    Array([2., 4., 6.], dtype=float32)
    """
    return _smooth(
        explain,
        additive,
        sigma=sigma,
        num_samples=num_samples,
        argnum=argnum,
        where=where,
        sampler=sampler,
        reduction=reduction,
        chunk_size=chunk_size,
        tolerance=tolerance,
        sharding=sharding,
    )


@transform(takes_key=True)
def noisegrad(
    explain: Explainer,
    sigma: Any = 0.2,
    *,
    num_samples: int = 25,
    argnum: int = 0,
    where: Any = None,
    sampler: Sampler = box_muller,
    reduction: Reduction = reductions.mean(),
    chunk_size: int = 1,
    tolerance: Any = None,
    sharding: NamedSharding | None = None,
) -> Explainer:
    """Returns an explainer that averages `explain` over noise on the weights, multiplied to params.

    **The paper's default level, 0.2, can destroy a network**: EfficientNet-Lite0 falls from 79 % of
    photos right to none, and the map is then no better than a random one. Choose the level for your
    network with `sigma_for_accuracy_drop`.

    `smoothed(key, params, x, *rest) = mean_i explain(params * (1 + sigma * eps_i), x, *rest)`, with
    `eps_i` drawn by the sampler, standard normal by default, for every weight by itself.

    Args:
      explain: a function `explain(params, x, *rest)` that returns a pytree of arrays; or a
        stochastic one, with a key first.
      sigma: the noise level as a fraction of each weight, in the grammar of `smoothgrad`.
      num_samples: the number of draws.
      argnum: the argument that the noise is on, counted from 0 after the key: 0 is params.
      where: which leaves to perturb, as in `smoothgrad`. Keep running statistics of normalisation
        layers out of `params`, or out of `where`: the paper does not perturb them.
      sampler: as in `smoothgrad`.
      reduction: what becomes of the draws, from `smoothjax.reductions`.
      chunk_size: how many draws are evaluated at once. Each has its own copy of the weights, and a
        convolution with a batch of weights is a grouped one, so 1 is usually best.
      tolerance: if given, when to stop before `num_samples`, as in `smoothgrad`.
      sharding: if given, how the draws of a chunk are spread over devices, as in `smoothgrad`; the
        chunk must then be as large as the axis. Weights that are divided over devices need none:
        their noise is drawn where they live.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)`. Under `jax.vmap` with `in_axes=None`
      for key and params, a batch shares its weight draws.

    Raises:
      TypeError, ValueError: as `smoothgrad` does.

    Cost: `num_samples` evaluations of `explain` and as many draws of noise for all weights, the
    memory of `chunk_size` of each.

    Source: Bykov et al. 2022, arXiv 2106.10185.

    >>> score = lambda params, x: jnp.sum(params["w"] * x)
    >>> explain = jax.jit(sj.noisegrad(jax.grad(score, argnums=1), sigma=0.01))
    >>> explain(jax.random.key(0), {"w": jnp.arange(3.0)}, jnp.ones(3)).round(1)
    Array([0., 1., 2.], dtype=float32)
    """
    return _smooth(
        explain,
        multiplicative,
        sigma=sigma,
        num_samples=num_samples,
        argnum=argnum,
        where=where,
        sampler=sampler,
        reduction=reduction,
        chunk_size=chunk_size,
        tolerance=tolerance,
        sharding=sharding,
    )


@transform(takes_key=True)
def fusiongrad(
    explain: Explainer,
    sigma_weights: Any = 0.1,
    sigma_inputs: Any = relative(0.075),
    *,
    num_weight_draws: int = 10,
    num_input_draws: int = 10,
    reduction: Reduction = reductions.mean(),
) -> Explainer:
    """Returns an explainer that averages `explain` over noise on the weights and on x.

    It is `noisegrad(smoothgrad(explain))`: for each draw of the weights, fresh draws of the input.
    Write that composition yourself for other arguments, masks or chunk sizes.

    **The default weight noise can destroy a network**, as that of `noisegrad`. The rule is half of
    the level that `sigma_for_accuracy_drop` finds.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      sigma_weights: the level on `params`, as in `noisegrad`; half of the paper's 0.2 by default.
      sigma_inputs: the level on `x`, as in `smoothgrad`; half of `relative(0.15)` by default.
      num_weight_draws: how often the weights are drawn.
      num_input_draws: how often the input is drawn for each draw of the weights.
      reduction: what becomes of the maps of the weight draws, each a mean over input draws.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)`.

    Raises:
      TypeError, ValueError: as `smoothgrad` does.

    Cost: `num_weight_draws * num_input_draws` evaluations of `explain`, `num_weight_draws` draws of
    noise for all weights.

    Source: Bykov et al. 2022, arXiv 2106.10185.

    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> explain = jax.jit(sj.fusiongrad(jax.grad(score, argnums=1), 0.01, 0.01))
    >>> explain(jax.random.key(0), jnp.ones(3), jnp.array([1.0, 2.0, 3.0])).round(1)
    Array([2., 4., 6.], dtype=float32)
    """
    check_integer(num_weight_draws, "num_weight_draws", least=1)
    check_integer(num_input_draws, "num_input_draws", least=1)
    smoothed = smoothgrad(explain, sigma_inputs, num_samples=num_input_draws)
    return noisegrad(smoothed, sigma_weights, num_samples=num_weight_draws, reduction=reduction)


@transform(takes_key=True)
def adaptgrad(
    explain: Explainer, bounds: tuple[Any, Any], confidence: Any = 0.95, **options: Any
) -> Explainer:
    """Returns an explainer that averages `explain` over noise on x that stays inside its domain.

    It is `smoothgrad(explain, adaptive(bounds, confidence), **options)`: the noise of each element
    is as large as its distance to the nearer bound allows. The authors' code adds one noise-free
    draw to the mean; this does not.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      bounds: a pair (lo, hi) that broadcasts to x, in the units of x: after normalisation, if x is
        normalised, and per channel then. Or a pytree prefix of pairs, one for each leaf of x.
      confidence: each element of a draw stays inside its bounds with at least this probability.
      **options: the other keyword arguments of `smoothgrad`.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)`.

    Raises:
      TypeError, ValueError: as `adaptive` and `smoothgrad` do.

    Cost: that of `smoothgrad`.

    Source: Zhou et al. 2025, arXiv 2410.07711.

    >>> score = lambda params, x: jnp.sum(params * x**2)
    >>> explain = jax.jit(sj.adaptgrad(jax.grad(score, argnums=1), bounds=(0.0, 1.0)))
    >>> explain(jax.random.key(0), jnp.ones(2), jnp.array([0.0, 1.0]))
    Array([0., 2.], dtype=float32)
    """
    return smoothgrad(explain, adaptive(bounds, confidence), **options)


@transform(takes_key=True)
def vargrad(explain: Explainer, sigma: Any = relative(0.15), **options: Any) -> Explainer:
    """Returns an explainer of the variance of `explain` under noise on x.

    It is `smoothgrad(explain, sigma, reduction=variance(), **options)`, with the unbiased variance.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      sigma: the noise level, as in `smoothgrad`.
      **options: the other keyword arguments of `smoothgrad`, but `reduction`; at least two samples.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)` of maps that are nowhere negative, in
      the squared units of `explain`, in at least float32.

    Raises:
      TypeError, ValueError: as `smoothgrad` does.

    Cost: that of `smoothgrad`.

    Source: Adebayo et al. 2018, arXiv 1810.03307; Hooker et al. 2019, arXiv 1806.10758.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> explain = jax.jit(sj.vargrad(jax.grad(score, argnums=1), 0.1))
    >>> explain(jax.random.key(0), jnp.ones(3), jnp.arange(3.0))  # a linear score: no variance
    Array([0., 0., 0.], dtype=float32)
    """
    return smoothgrad(explain, sigma, reduction=reductions.variance(), **options)


@transform(takes_key=True)
def squaregrad(explain: Explainer, sigma: Any = relative(0.15), **options: Any) -> Explainer:
    """Returns an explainer of the mean square of `explain` under noise on x (SmoothGrad squared).

    It is `smoothgrad(explain, sigma, reduction=mean_square(), **options)`.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      sigma: the noise level, as in `smoothgrad`.
      **options: the other keyword arguments of `smoothgrad`, but `reduction`.

    Returns:
      A stochastic explainer `smoothed(key, params, x, *rest)` of maps that are nowhere negative, in
      the squared units of `explain`, in at least float32.

    Raises:
      TypeError, ValueError: as `smoothgrad` does.

    Cost: that of `smoothgrad`.

    Source: Hooker et al. 2019, arXiv 1806.10758.

    >>> score = lambda params, x: jnp.sum(params * x)
    >>> explain = jax.jit(sj.squaregrad(jax.grad(score, argnums=1), 0.1))
    >>> explain(jax.random.key(0), jnp.arange(3.0), jnp.ones(3))
    Array([0., 1., 4.], dtype=float32)
    """
    return smoothgrad(explain, sigma, reduction=reductions.mean_square(), **options)


def _smooth(explain, combine, *, sigma, argnum, where, sampler, **loop):
    at = at_argument(explain, argnum)
    # Inside `jax.shard_map` a device has a part of the weights, but an example of its own.
    perturb = perturbation(combine, sigma, where, sampler, of_shards=argnum == 0)
    average = monte_carlo(**loop)

    def smoothed(key, *args, **kwargs):
        x, explain_at = at(args, kwargs)
        noisy = perturb(x)

        def draw(key):
            # Split even if one is unused, so that what is inside does not change the noise outside.
            noise_key, inner_key = jax.random.split(key)
            return explain_at(inner_key, noisy(noise_key))

        return average(draw, key, x)

    return smoothed
