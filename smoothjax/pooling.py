"""Pooling a map over its channels: the one place where that choice is made."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._axes import LAST, check_pooled_axis
from smoothjax._checks import check_function, check_integer, require
from smoothjax._statistics import norm
from smoothjax._transform import keyed, map_noted, transform
from smoothjax._trees import is_float0, is_inexact, wide_dtype
from smoothjax._typing import Explainer, PyTree
from smoothjax.reductions import check_no_estimate


@transform
def pool(explain: Explainer, how: Callable[..., jax.Array], channel_axis: int = LAST) -> Explainer:
    """Returns an explainer of `how(explain(...), axis=channel_axis)`, such as one value per pixel.

    Maps are signed and per channel until you say otherwise. Sums keep the sign, so that opposite
    channels cancel; absolute sums and norms do not. Pooling first and averaging later is another
    map than averaging first: compare `smoothgrad(pool(f, how))` with `pool(smoothgrad(f), how)`.
    Where all channels are 0, a norm has the derivative 0; that of `jnp.std` is NaN where all
    channels are equal, as in JAX: take `lambda a, axis: jnp.sqrt(jnp.var(a, axis=axis) + 1e-12)`.

    Args:
      explain: a function `explain(params, x, *rest)`, or a stochastic one, with a key first.
      how: a function `how(array, axis=axis)` that removes the axis: `jnp.sum` (signed),
        `jnp.linalg.norm` (L2), `functools.partial(jnp.linalg.norm, ord=1)` (absolute sum),
        `jnp.max`.
      channel_axis: the channel axis of each leaf: the last one, or 0 for channels first.

    Returns:
      An explainer, stochastic if `explain` is, whose leaves lack the axis. Half precision is pooled
      in float32, and cast back; by `jnp.linalg.norm`, of entries whose squares would underflow too.

    Raises:
      TypeError, ValueError: if `explain` or `how` is no function, or `channel_axis` no integer;
        when called, if `explain` returns an `Estimate`, whose standard error cannot be pooled, a
        map without the axis, or one that looks like (channels, H, W), unless the axis is typed; and
        if `how` removes another axis or none.

    Cost: that of `explain`.

    >>> explain = sj.pool(jax.grad(lambda params, x: jnp.sum(params * x), argnums=1), jnp.sum)
    >>> explain(jnp.array([[1.0, -1.0], [2.0, 3.0]]), jnp.ones((2, 2)))
    Array([0., 5.], dtype=float32)
    """
    check_function(how, "how")
    how = norm if how is jnp.linalg.norm else how
    axis = check_integer(channel_axis, "channel_axis")

    def pooled(leaf):
        shape = jnp.shape(leaf)
        check_pooled_axis(shape, channel_axis)
        require(
            -len(shape) <= axis < len(shape),
            f"a map of shape {shape} has no channel axis {axis}.",
        )
        if is_inexact(leaf):
            wide = leaf.astype(wide_dtype(leaf.dtype))
            value = _even_at_zero(how, wide, axis)
            value = value.astype(leaf.dtype) if value.dtype == wide.dtype else value
        else:
            value = how(leaf, axis=axis)
        pooled_shape = tuple(np.delete(shape, axis).tolist())
        require(
            value.shape == pooled_shape,
            f"how(array, axis={axis}) must remove that axis, as jnp.sum does: of a map of shape "
            f"{shape} it made {value.shape}, not {pooled_shape}.",
        )
        return value

    return map_leaves(explain, pooled)


def _even_at_zero(how, leaf, axis):
    """`how(leaf, axis=axis)`; where all channels are 0, with the mean derivative on either side.

    For a sum it is the derivative, for a norm it is 0, where its formula makes it NaN.
    """
    # Without derivatives, which are not used, and NaN for `jax.debug_nans`.
    value = how(jax.lax.stop_gradient(leaf), axis=axis)
    if not is_inexact(value):
        return value
    nothing = jnp.all(leaf == 0, axis=axis, keepdims=True)
    # So small that it is no more than rounding elsewhere, and that its square does not underflow.
    step = jnp.where(nothing, jnp.finfo(leaf.dtype).tiny ** 0.25, 0).astype(leaf.dtype)
    beside = (how(leaf + step, axis=axis) + how(leaf - step, axis=axis)) / 2
    return _differentiated_as(value, beside)


@jax.custom_jvp
def _differentiated_as(value, like):
    del like
    return value


_differentiated_as.defjvp(lambda primals, tangents: (primals[0], tangents[1]))


def map_leaves(explain: Explainer, fun: Callable[[jax.Array], PyTree]) -> Explainer:
    """Returns a function `(key, *args)` of `fun(leaf)` for each leaf of what `explain` returns."""
    inner = keyed(explain)

    def mapped(key, *args, **kwargs):
        attribution = inner(key, *args, **kwargs)
        check_no_estimate(attribution)
        return map_noted(lambda leaf: leaf if is_float0(leaf) else fun(leaf), attribution)

    return mapped
