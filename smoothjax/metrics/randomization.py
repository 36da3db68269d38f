"""Randomisation: whether an explanation changes when what it explains does.

Metrics compare maps of one input under two models, or for two classes, by a similarity: a function
of two maps that returns a scalar, from `smoothjax.metrics.similarity` or your own. It is
given the maps as the explainer returns them, signed and per channel; to compare magnitudes, as
pictures of saliency show them, write `similarity=lambda a, b: spearman(abs(a), abs(b))`.

A stochastic explainer gets the same key for all maps that are compared, so that they differ by the
model alone.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax import reductions
from smoothjax._checks import check_function, check_index, check_integer, require
from smoothjax._loop import accumulate
from smoothjax._transform import argument, at_argument, keyed, transform
from smoothjax._trees import check_has_inexact, fit, is_inexact, path_string, wide_dtype
from smoothjax._typing import Explainer, PyTree
from smoothjax.metrics.complexity import histogram_entropy
from smoothjax.metrics.layers import redraw, selected
from smoothjax.metrics.similarity import spearman, ssim
from smoothjax.reductions import Reduction

Similarity = Callable[[Any, Any], jax.Array]


@transform(takes_key=True)
def parameter_randomization(
    explain: Explainer,
    layers: Mapping[str, Any],
    *,
    reinitialize: Callable[[jax.Array, PyTree], PyTree] = redraw,
    cascade: bool = True,
    similarity: Similarity = spearman,
    reduction: Reduction = reductions.mean(),
    chunk_size: int = 1,
) -> Callable[..., jax.Array]:
    """Returns a metric: how alike the maps of a model stay as its layers are randomised.

    `mean_k similarity(explain(params, x), explain(params_k, x))`, with the first k layers
    randomised in `params_k`, or if they are not cascaded, the k-th alone. Params are randomised
    once: a layer gets the same new values in each stage that it is part of.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      layers: selections of leaves of params, as for `where` in `noisegrad`, by name, from the first
        to be randomised to the last: for the paper's cascade from the output to the input, of the
        output first. See `layers_at_depth` and `smoothjax.by_path`. Dictionaries keep their order.
      reinitialize: a function `reinitialize(key, params)` that returns params of the same structure
        and shapes with all their layers randomised, such as
        `lambda key, params: model.init(key, x)["params"]` in Flax, which is what the paper does.
        The default needs no initialiser.
      cascade: whether layers stay randomised in later stages.
      similarity: of two maps; see the module.
      reduction: what becomes of the stages, from `smoothjax.reductions`: `mean()`, or `stack()` for
        the curve, one value for each of the layers.
      chunk_size: how many stages are evaluated at once; memory only.

    Returns:
      A stochastic function `similar(key, params, x, *rest)` that returns a scalar, for Spearman's
      correlation from -1 to 1. Lower is better: 1 for a map that does not look at the model, as an
      edge detector; about 0 for one that is lost with the first layer. A low value alone does not
      make a map right.

    Raises:
      TypeError, ValueError: for bad settings; when called, for a layer that selects nothing, for
        randomised params that are not shaped like params, or a similarity that is no scalar.

    Cost: an explanation for each layer, and one; the memory of one more copy of params, and of
    `chunk_size` others.

    Source: Adebayo et al. 2018, arXiv 1810.03292. Of `smoothgrad(explain)`, whose maps are hardly
    noisy, it is the smooth test of Hedström et al. 2024, arXiv 2405.02383 (sMPRT).

    >>> wave = jnp.sin(jnp.arange(450.0) ** 2)
    >>> params, x = {"head": wave[:9], "stem": wave.reshape(50, 9)}, wave[:50]
    >>> score = lambda params, x: jnp.tanh(x @ params["stem"]) @ params["head"]
    >>> edges = lambda params, x: jnp.gradient(x)
    >>> for explain in (sj.saliency(score), edges):
    ...     similar = sj.metrics.parameter_randomization(
    ...         explain, sj.metrics.layers_at_depth(params)
    ...     )
    ...     print(jax.jit(similar)(jax.random.key(0), params, x) > 0.9)
    False
    True
    """
    at = at_argument(explain, 0)
    compare = _comparing(similarity)
    is_dict = isinstance(layers, Mapping)
    require(is_dict, f"layers must be like layers_at_depth(params); got {layers!r:.80}.", TypeError)
    layers = dict(layers)
    run = accumulate(reduction, chunk_size)

    def similar(key, *args, **kwargs):
        params, explain_at = at(args, kwargs)
        new_key, inner_key = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(params)
        stages = np.array([selected(layer, layers[layer], params) for layer in layers])
        if cascade:
            stages = np.logical_or.accumulate(stages)
        anew = _like_params(reinitialize(new_key, params), params)
        attribution = explain_at(inner_key, params)

        def stage(k):
            mixed = [
                jnp.where(jnp.asarray(column)[k], new, old) if any(column) else old
                for column, new, old in zip(stages.T, anew, leaves, strict=True)
            ]
            return compare(attribution, explain_at(inner_key, treedef.unflatten(mixed)))

        return run(stage, len(layers))

    return similar


@transform(takes_key=True)
def emprt(
    explain: Explainer,
    *,
    where: Any = True,
    reinitialize: Callable[[jax.Array, PyTree], PyTree] = redraw,
    complexity: Callable[[Any], jax.Array] = histogram_entropy,
) -> Callable[..., jax.Array]:
    """Returns a metric: by how much maps get more complex as the whole model is randomised.

    `(complexity(explain(new, x)) - complexity(explain(params, x))) / complexity(explain(params,
    x))`, with all params randomised in `new`: the efficient model parameter randomisation test. It
    is `parameter_randomization` of one layer, all, with that difference for a similarity. A map
    that shows what the model has learned is simpler than one of a model that has learned nothing.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      where: which leaves of params are randomised, as in `noisegrad`; by default all. Of Flax
        variables, `by_path(lambda path: path.startswith("params"))`: statistics of batches are not
        learned, and a variance that is redrawn may be negative.
      reinitialize: as in `parameter_randomization`.
      complexity: a function of a map that returns a scalar above 0, such as `entropy`;
        `functools.partial(histogram_entropy, num_bins=50)` has other bins.

    Returns:
      A stochastic function `rise(key, params, x, *rest)` that returns a scalar, -1 or more; higher
      is better, and 0 is a map that does not look at the model. Where the complexity is 0, 0 if it
      stays so, and infinite if not.

    Raises:
      TypeError, ValueError: as `parameter_randomization` does; and for a complexity that is no
        scalar.

    Cost: two explanations, and the memory of two more copies of params.

    Source: Hedström et al. 2024, arXiv 2405.02383, with the 100 bins that their code has by
    default.

    >>> explain = lambda params, x: params * x
    >>> flat = jnp.ones(1000).at[::100].set(-50.0)  # most values are in one bin
    >>> rise = jax.jit(sj.metrics.emprt(explain))(jax.random.key(0), flat, jnp.ones(1000))
    >>> print(rise > 10)
    True
    """
    check_function(complexity, "complexity")

    def relative_rise(attribution, other):
        before, after = complexity(attribution), complexity(other)
        # Nothing has not risen if it is still nothing.
        return (after - before) / jnp.where(after == before, 1, before)

    test = parameter_randomization(
        explain, {"where": where}, reinitialize=reinitialize, similarity=relative_rise
    )
    return lambda key, *args, **kwargs: test(key, *args, **kwargs)


@transform(takes_key=True)
def random_logit(
    explain: Explainer, num_classes: int, *, similarity: Similarity = ssim
) -> Callable[..., jax.Array]:
    """Returns a metric: how alike the maps of a class and of another one, drawn at random, are.

    `similarity(explain(params, x, label), explain(params, x, other))`, with `other` uniform over
    the classes that are not `label`.

    Args:
      explain: a function `explain(params, x, label, *rest)`, or a stochastic one, with a key first.
      num_classes: the number of classes, at least 2.
      similarity: of two maps; see the module. The paper's `ssim` needs pictures of at least 11 x 11
        pixels; `spearman` fits any map.

    Returns:
      A stochastic function `similar(key, params, x, label, *rest)`, `label` an integer from 0 to
      `num_classes - 1`, that returns a scalar, for SSIM from -1 to 1; lower is better: 1 for a map
      that does not look at the class.

    Raises:
      TypeError, ValueError: for bad settings, a missing or bad label (NaN is returned if one out of
        range is traced), or a similarity that is no scalar.

    Cost: two explanations.

    Source: Sixt et al. 2020, arXiv 1912.09818.

    >>> explain = sj.saliency(lambda params, x, label: (params @ x)[label])
    >>> similar = jax.jit(
    ...     sj.metrics.random_logit(explain, num_classes=5, similarity=sj.metrics.cosine)
    ... )
    >>> print(similar(jax.random.key(0), jnp.eye(5), jnp.ones(5), 3))
    0.0
    """
    at = at_argument(explain, 2)
    compare = _comparing(similarity)
    num_classes = check_integer(num_classes, "num_classes", least=2)

    def similar(key, *args, **kwargs):
        label, explain_at = at(args, kwargs)
        label = check_index(label, num_classes, "label")
        class_key, inner_key = jax.random.split(key)
        # A step from 1 to num_classes - 1 leads to each other class, and never back.
        step = jax.random.randint(class_key, (), 1, num_classes, jnp.int32)
        other = (label + step) % num_classes
        # One loop over the two classes, for half the compiling.
        maps = jax.lax.map(lambda label: explain_at(inner_key, label), jnp.stack([label, other]))
        attribution, of_other = (jax.tree.map(operator.itemgetter(i), maps) for i in range(2))
        alike = compare(attribution, of_other)
        alike = alike.astype(wide_dtype(alike.dtype))  # a count is no NaN
        return jnp.where((0 <= label) & (label < num_classes), alike, jnp.nan)

    return similar


@transform
def consistency(
    explain: Explainer, other_params: PyTree, *, similarity: Similarity = spearman
) -> Callable[..., jax.Array]:
    """Returns a metric: how alike the maps of a model and of one trained on random labels are.

    `|similarity(explain(params, x), explain(other_params, x))|`. A model that learned random labels
    knows nothing of what x shows, so a map that it shares shows the input, not what was learned.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      other_params: the weights of the same network trained on randomly permuted labels. Build the
        metric inside the jitted function to pass large ones as an argument.
      similarity: of two maps; see the module.

    Returns:
      A function `similar(params, x, *rest)`, stochastic if `explain` is, that returns a scalar, for
      Spearman's correlation from 0 to 1; lower is better.

    Raises:
      TypeError, ValueError: for bad settings, or a similarity that is no scalar.

    Cost: two explanations.

    Source: Zhou et al. 2025, arXiv 2410.07711; the data randomisation test of Adebayo et al. 2018,
    arXiv 1810.03292.

    >>> explain = sj.saliency(lambda params, x: params @ x)
    >>> params, other_params = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 1.0, 3.0])
    >>> print(jax.jit(sj.metrics.consistency(explain, other_params))(params, jnp.ones(3)).round(6))
    0.5
    """
    return _magnitude(explain, other_params, lambda x: x, similarity)


@transform
def invariance(
    explain: Explainer, other_params: PyTree, shift: Any, *, similarity: Similarity = spearman
) -> Callable[..., jax.Array]:
    """Returns a metric: how alike the maps of a model and of one for shifted inputs are.

    `|similarity(explain(params, x), explain(other_params, x + shift))|`. The other model has
    learned the same from the same inputs plus a constant, so it sees in `x + shift` what the first
    one sees in x, and a map that tells what the input means to the model is the same. Gradients
    are: the bias takes up the shift. Products with the input are not.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      other_params: the weights of the same network for inputs with `shift` added: trained on those,
        or with first biases that undo it. Build the metric inside the jitted function to pass large
        ones as an argument.
      shift: a number or array that broadcasts to x, in its units.
      similarity: of two maps; see the module.

    Returns:
      A function `similar(params, x, *rest)`, stochastic if `explain` is, that returns a scalar, for
      Spearman's correlation from 0 to 1; higher is better, 1 for a map that is invariant. A map
      that does not look at the model is 1 too, so read it beside `consistency`.

    Raises:
      TypeError, ValueError: for bad settings, a shift that does not fit x, or a similarity that is
        no scalar.

    Cost: two explanations.

    Source: Zhou et al. 2025, arXiv 2410.07711; the shift is that of Kindermans et al. 2017, arXiv
    1711.00867.

    >>> score = lambda params, x: params[0] @ x + params[1]
    >>> w, x = jnp.array([1.0, 2.0, 3.0]), jnp.array([3.0, 2.0, 0.5])
    >>> for method in (sj.saliency, sj.input_times_gradient):  # the bias undoes the shift of 2
    ...     alike = sj.metrics.invariance(method(score), (w, -2 * w.sum()), 2.0)
    ...     print(alike((w, 0.0), x).round(6))
    1.0
    0.5
    """

    def shifted(x):
        check_has_inexact(x)
        x = jnp.asarray(x)
        return (x.astype(wide_dtype(x.dtype)) + fit(shift, x, "shift")).astype(x.dtype)

    return _magnitude(explain, other_params, shifted, similarity)


def _magnitude(explain, other_params, change, similarity):
    """How alike two models' maps are, of x and of `change(x)`, whatever the sign."""
    compare = _comparing(similarity)
    explain = keyed(explain)

    def similar(key, *args, **kwargs):
        changed = change(argument(args, 1))
        attribution = explain(key, *args, **kwargs)
        other = explain(key, other_params, changed, *args[2:], **kwargs)
        return jnp.abs(compare(attribution, other))

    return similar


def _comparing(similarity):
    """The similarity, whose value is checked."""
    check_function(similarity, "similarity")

    def compare(attribution, other):
        alike = jnp.asarray(similarity(attribution, other))
        require(alike.shape == (), f"similarity must return a scalar; got shape {alike.shape}.")
        return alike

    return compare


def _like_params(anew, params):
    """The leaves of randomised params, in the dtypes of params."""

    def of_leaf(path, old, new):
        if not is_inexact(old):
            return old
        same = np.shape(new) == np.shape(old)
        where = path_string(path)
        require(same, f"reinitialize must keep shapes; got {np.shape(new)} at {where!r}.")
        return jnp.asarray(new).astype(old.dtype)

    return jax.tree.leaves(jax.tree_util.tree_map_with_path(of_leaf, params, anew))
