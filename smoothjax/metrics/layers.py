"""The layers of params: which leaves they hold, in which order, and drawing them anew."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._checks import check_integer, require
from smoothjax._perturb import perturbation
from smoothjax._shown import shown
from smoothjax._transform import noted
from smoothjax._trees import check_has_inexact, is_inexact, path_string, resolve, wide_dtype
from smoothjax._typing import PyTree, Rule


@shown
@noted
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

    >>> old = {"kernel": jnp.linspace(-1.0, 3.0, 10000), "bias": jnp.zeros(3)}
    >>> new = sj.metrics.redraw(jax.random.key(0), old)
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

    perturb = perturbation(anew, lambda params: jax.tree.map(deviation, params))
    return perturb(params)(key)


@noted
def layers_at_depth(params: PyTree, depth: int = 1) -> dict[str, Rule]:
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

    >>> leaf = jnp.ones(2)
    >>> params = {"stem": leaf, "blocks": {"10": leaf, "9": leaf}}
    >>> list(sj.metrics.layers_at_depth(params, depth=2))
    ['blocks/9', 'blocks/10', 'stem']
    """
    depth = check_integer(depth, "depth", least=1)
    check_has_inexact(params)
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
                lambda path, _: path_string(path[:depth]) == layer, argument
            )

        return select

    paths = sorted({path[:depth] for path, leaf in leaves if is_inexact(leaf)}, key=rank)
    return {layer: under(layer) for layer in map(path_string, paths)}


def selected(layer: str, selection: Any, params: PyTree) -> list[bool]:
    """Returns for each leaf of params whether a layer holds it and it can be randomised."""
    what = f"the layer {layer!r}"
    chosen = resolve(selection, params, what)
    are_bools = all(isinstance(one, (bool, np.bool_)) for one in chosen)
    require(are_bools, f"{what} must be bools as for `where`; got {selection!r:.80}.", TypeError)
    leaves = jax.tree.leaves(params)
    found = [bool(c) and is_inexact(leaf) for c, leaf in zip(chosen, leaves, strict=True)]
    require(any(found), f"{what} selects no floating-point leaf of params.")
    return found


def _natural(entry):
    """What orders a dictionary's key among others: its text and numbers in turn."""
    if not isinstance(entry, jax.tree_util.DictKey):
        return []  # the pytree has the right order
    words = re.split(r"(\d+)", str(entry.key))
    return [int(word) if i % 2 else word for i, word in enumerate(words)]
