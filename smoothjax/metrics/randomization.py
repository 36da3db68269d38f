"""Randomisation: whether an explanation changes when what it explains does.

Each metric compares maps of one input under two models, or for two classes, by a similarity: a
function of two maps that returns a scalar, from `smoothjax.metrics.similarity` or your own. It is
given the maps as the explainer returns them, signed and per channel; to compare magnitudes, as
pictures of saliency show them, write `similarity=lambda a, b: spearman(abs(a), abs(b))`.

A stochastic explainer gets the same key for all maps that are compared, so that they differ by the
model alone.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from smoothjax import noise, reductions, sampling
from smoothjax.metrics.similarity import spearman, ssim
from smoothjax.noise import check_has_inexact, fit, is_inexact, resolve
from smoothjax.reductions import Reduction
from smoothjax.transform import (
    Explainer,
    argument,
    check_at_least,
    check_callable,
    is_stochastic,
    keyed,
    named,
    replace,
    wide_dtype,
)

PyTree = Any
Similarity = Callable[[Any, Any], jax.Array]


def redraw(key: jax.Array, params: PyTree) -> PyTree:
    """Returns params with each leaf drawn anew, normal with the mean and deviation that it had.

    So a network keeps the scale of its activations, and a leaf of one value keeps it. Leaves that
    are no floating-point arrays are left as they are.

    Args:
      key: a typed PRNG key.
      params: a pytree.

    Returns:
      A pytree like params.

    Raises:
      TypeError: if there is no floating-point leaf, or one is complex.

    >>> import jax, jax.numpy as jnp
    >>> from smoothjax.metrics.randomization import redraw
    >>> old = {"kernel": jnp.linspace(-1.0, 3.0, 10000), "bias": jnp.zeros(3)}
    >>> new = redraw(jax.random.key(0), old)
    >>> print(new["bias"], abs(new["kernel"].mean() - 1) < 0.1, jnp.all(new["kernel"] == 1))
    [0. 0. 0.] True False
    """

    def deviation(leaf):
        if not is_inexact(leaf):
            return 0.0
        leaf = jnp.asarray(leaf)
        return jnp.std(leaf.astype(wide_dtype(leaf.dtype)))

    def anew(leaf, deviations):
        return jnp.mean(leaf) + deviations

    sigmas = noise.levels("redraw", params, lambda tree: jax.tree.map(deviation, tree), None)
    return noise.perturb(key, params, sigmas, jax.random.normal, anew)


def layers_at_depth(params: PyTree, depth: int = 1) -> dict[str, noise.Rule]:
    """Returns the layers of params: for the path of each subtree, the selection of its leaves.

    Dictionary keys with numbers are in the order of the numbers, "block2" before "block10".
    Otherwise the order is that of the pytree: of definition for modules of fields and lists, but
    that of the alphabet for dictionaries, which know no other. Put what you need in yours:
    `{path: layers[path] for path in ("head", "block2", "block1", "stem")}`.

    Of Flax variables, `{"params": ..., "batch_stats": ...}`, depth 1 finds those two. Take depth 2,
    and of its layers those that you name, last first: ("params/Dense_0", "params/Conv_1", ...). In
    the order of the alphabet all "batch_stats" come first.

    Args:
      params: a pytree.
      depth: the length of the paths: 1 for "blocks" and "head", 2 for "blocks/0" and "head/kernel".

    Returns:
      A dict from paths to selections, as `where` takes them, for `parameter_randomization`. Layers
      without a floating-point array are not among them.

    Raises:
      TypeError, ValueError: if the depth is no integer of at least 1, or params have no
        floating-point leaf.

    >>> import jax.numpy as jnp
    >>> from smoothjax.metrics.randomization import layers_at_depth
    >>> leaf = jnp.ones(2)
    >>> list(layers_at_depth({"stem": leaf, "blocks": {"10": leaf, "9": leaf}}, depth=2))
    ['blocks/9', 'blocks/10', 'stem']
    """
    name = "layers_at_depth"
    depth = check_at_least(depth, 1, f"{name}: depth")
    check_has_inexact(params, name)
    places: dict[tuple, int] = {}  # of each subtree, the position of its first leaf
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for i, (path, _) in enumerate(leaves):
        for d in range(1, depth + 1):
            places.setdefault(path[:d], i)

    def rank(path):
        return [(_natural(path[d]), places[path[: d + 1]]) for d in range(len(path))]

    def under(layer):
        def select(argument):
            return jax.tree_util.tree_map_with_path(
                lambda path, _: _path_string(path[:depth]) == layer, argument
            )

        return select

    paths = sorted({path[:depth] for path, leaf in leaves if is_inexact(leaf)}, key=rank)
    return {layer: under(layer) for layer in map(_path_string, paths)}


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

    Source: Adebayo et al. 2018, arXiv 1810.03292.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.metrics.randomization import layers_at_depth, parameter_randomization
    >>> wave = jnp.sin(jnp.arange(450.0) ** 2)
    >>> params, x = {"head": wave[:9], "stem": wave.reshape(50, 9)}, wave[:50]
    >>> score = lambda params, x: jnp.tanh(x @ params["stem"]) @ params["head"]
    >>> edges = lambda params, x: jnp.gradient(x)
    >>> for explain in (sj.saliency(score), edges):
    ...     similar = parameter_randomization(explain, layers_at_depth(params))
    ...     print(jax.jit(similar)(jax.random.key(0), params, x) > 0.9)
    False
    True
    """
    name = "parameter_randomization"
    check_callable(explain, name)
    check_callable(reinitialize, f"{name}: reinitialize")
    check_callable(similarity, f"{name}: similarity")
    if not isinstance(layers, Mapping) or not layers:
        raise TypeError(
            f"{name}: layers are selections by name, the first to be randomised first, such as "
            f"layers_at_depth(params); got {layers!r:.80}."
        )
    if not isinstance(cascade, bool):
        raise TypeError(f"{name}: cascade must be True or False; got {cascade!r:.80}.")
    layers = dict(layers)
    sampling.check_loop(name, len(layers), reduction, chunk_size, what="the number of layers")
    inner = keyed(explain)

    @named(name, explain, takes_key=True)
    def similar(key, *args, **kwargs):
        params = argument(args, 0, name)
        new_key, inner_key = jax.random.split(key)
        leaves, treedef = jax.tree.flatten(params)
        stages = np.array([_selected(name, layer, layers[layer], params) for layer in layers])
        if cascade:
            stages = np.logical_or.accumulate(stages)
        anew = _check_anew(name, reinitialize(new_key, params), params)
        attribution = inner(inner_key, *args, **kwargs)

        def stage(k):
            mixed = [
                jnp.where(jnp.asarray(column)[k], new, old) if any(column) else old
                for column, new, old in zip(stages.T, anew, leaves, strict=True)
            ]
            randomised = replace(args, 0, treedef.unflatten(mixed))
            other = inner(inner_key, *randomised, **kwargs)
            return _compare(name, similarity, attribution, other)

        return sampling.accumulate(stage, name, len(layers), reduction, chunk_size)

    return similar


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

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.metrics.randomization import random_logit
    >>> from smoothjax.metrics.similarity import cosine
    >>> explain = sj.saliency(lambda params, x, label: (params @ x)[label])
    >>> similar = jax.jit(random_logit(explain, num_classes=5, similarity=cosine))
    >>> print(similar(jax.random.key(0), jnp.eye(5), jnp.ones(5), 3))
    0.0
    """
    name = "random_logit"
    check_callable(explain, name)
    check_callable(similarity, f"{name}: similarity")
    num_classes = check_at_least(num_classes, 2, f"{name}: num_classes")
    inner = keyed(explain)

    @named(name, explain, takes_key=True)
    def similar(key, *args, **kwargs):
        label = _check_label(name, args, num_classes)
        class_key, inner_key = jax.random.split(key)
        # A step from 1 to num_classes - 1 leads to each other class, and never back.
        step = jax.random.randint(class_key, (), 1, num_classes, jnp.int32)
        other = (label + step) % num_classes

        def of_class(label):
            return inner(inner_key, *replace(args, 2, label), **kwargs)

        # One loop over the two classes, for half the compiling.
        maps = jax.lax.map(of_class, jnp.stack([label, other]))
        attribution, of_other = (jax.tree.map(operator.itemgetter(i), maps) for i in range(2))
        alike = _compare(name, similarity, attribution, of_other)
        alike = alike.astype(wide_dtype(alike.dtype))  # a count is no NaN
        return jnp.where((0 <= label) & (label < num_classes), alike, jnp.nan)

    return similar


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

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.metrics.randomization import consistency
    >>> explain = sj.saliency(lambda params, x: params @ x)
    >>> params, other_params = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 1.0, 3.0])
    >>> print(jax.jit(consistency(explain, other_params))(params, jnp.ones(3)).round(6))
    0.5
    """
    return _magnitude("consistency", explain, other_params, lambda x: x, similarity)


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

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.metrics.randomization import invariance
    >>> score = lambda params, x: params[0] @ x + params[1]
    >>> w, x = jnp.array([1.0, 2.0, 3.0]), jnp.array([3.0, 2.0, 0.5])
    >>> for method in (sj.saliency, sj.input_times_gradient):  # the bias undoes the shift of 2
    ...     print(invariance(method(score), (w, -2 * w.sum()), 2.0)((w, 0.0), x).round(6))
    1.0
    0.5
    """
    name = "invariance"

    def shifted(x):
        check_has_inexact(x, name)
        x = jnp.asarray(x)
        return (x.astype(wide_dtype(x.dtype)) + fit(shift, x, f"{name}: shift")).astype(x.dtype)

    return _magnitude(name, explain, other_params, shifted, similarity)


def _magnitude(name, explain, other_params, change, similarity):
    """The metric of how alike two models' maps are, of x and of `change(x)`, whatever the sign."""
    check_callable(explain, name)
    check_callable(similarity, f"{name}: similarity")
    inner = keyed(explain)

    @named(name, explain, takes_key=is_stochastic(explain))
    def similar(key, *args, **kwargs):
        x = argument(args, 1, name)
        others = replace(replace(args, 0, other_params), 1, change(x))
        attribution, other = inner(key, *args, **kwargs), inner(key, *others, **kwargs)
        return jnp.abs(_compare(name, similarity, attribution, other))

    return similar


def _compare(name, similarity, attribution, other):
    alike = jnp.asarray(similarity(attribution, other))
    if alike.shape != ():
        raise ValueError(
            f"{name}: similarity(a, b) must return a scalar; got an array of shape {alike.shape}."
        )
    return alike


def _selected(name, layer, selection, params):
    """For each leaf of params, whether a layer holds it and it can be randomised."""
    what = f"{name}: the layer {layer!r}"
    chosen = resolve(selection, params, what)
    if not all(isinstance(c, (bool, np.bool_)) for c in chosen):
        raise TypeError(
            f"{what} must be a selection as for `where`: bools, or a function of params that "
            f"returns them, such as smoothjax.by_path(lambda path: path.startswith({layer!r})); "
            f"got {selection!r:.80}."
        )
    chosen = [
        c and is_inexact(leaf) for c, leaf in zip(chosen, jax.tree.leaves(params), strict=True)
    ]
    if not any(chosen):
        paths = [_path_string(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        raise ValueError(f"{what} selects no floating-point leaf of {paths!s:.200}.")
    return chosen


def _check_anew(name, anew, params):
    """The leaves of randomised params, in the dtypes of params."""
    want, got = jax.tree.structure(params), jax.tree.structure(anew)
    if got != want:
        raise ValueError(
            f"{name}: reinitialize(key, params) must return params of the same structure, "
            f"{want!s:.200}; got {got!s:.200}."
        )

    def of_leaf(path, new, old):
        if not is_inexact(old):
            return old
        if jnp.shape(new) != jnp.shape(old):
            raise ValueError(
                f"{name}: reinitialize(key, params) must return leaves of the same shapes; got "
                f"{jnp.shape(new)} for {jnp.shape(old)} at {_path_string(path)!r}."
            )
        return jnp.asarray(new).astype(old.dtype)

    return jax.tree.leaves(jax.tree_util.tree_map_with_path(of_leaf, anew, params))


def _check_label(name, args, num_classes):
    if len(args) < 3:
        raise TypeError(
            f"{name} needs a positional label, after key, params and x; got {len(args)} positional "
            "argument(s) after the key."
        )
    label = jnp.asarray(args[2])
    if label.shape != () or not jnp.issubdtype(label.dtype, jnp.integer):
        raise TypeError(
            f"{name}: the argument after x must be the label, one integer; got {args[2]!r:.80}."
        )
    if not isinstance(label, Tracer) and not 0 <= label < num_classes:
        raise ValueError(
            f"{name}: label must be from 0 to {num_classes - 1}, since num_classes is "
            f"{num_classes}; got {label}."
        )
    return label.astype(jnp.int32)


def _natural(entry):
    """What orders a dictionary's key among others: its text and numbers in turn."""
    if not isinstance(entry, jax.tree_util.DictKey):
        return []  # the pytree has the right order
    words = re.split(r"(\d+)", str(entry.key))
    return [int(word) if i % 2 else word for i, word in enumerate(words)]


def _path_string(path):
    return jax.tree_util.keystr(path, simple=True, separator="/")
