"""Scores: the number that is explained."""

import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from smoothjax._checks import require
from smoothjax._transform import keyed, transform
from smoothjax._typing import Score


@transform
def class_score(apply: Callable[..., jax.Array]) -> Score:
    """Returns the score of a class: `score(params, x, label) = apply(params, x)[label]`.

    A label outside 0 to n - 1 makes the score NaN, and every map of it. `apply(params, x)[label]`
    would explain another class there: JAX takes the last one for a label that is too large, and
    counts negative ones from the end.

    Args:
      apply: a function `apply(params, x)` from one example to the n outputs of a network, of shape
        (n,), or (1, n) for a batch of one: logits, or their softmax. It may take a key first, if
        it is stochastic.

    Returns:
      A function `score(params, x, label)`, with a key first if `apply` is stochastic, that returns
      a scalar. Keyword arguments pass through.

    Raises:
      TypeError, ValueError: when called, for outputs that are no array of that shape and dtype, a
        label that is no integer, or a label that is known, not traced, and outside.

    >>> score = sj.class_score(lambda params, x: params @ x)
    >>> print(score(jnp.eye(3), jnp.array([1.0, 2.0, 4.0]), 2))
    4.0
    """
    inner = keyed(apply)

    def score(key, params, x, label, **kwargs):
        outputs = inner(key, params, x, **kwargs)
        require(
            jax.tree_util.all_leaves([outputs]),
            f"apply(params, x) must return one array of outputs; got a {type(outputs).__name__}. "
            "Pick the logits in it, such as lambda params, x: apply(params, x)[0].",
            TypeError,
        )
        outputs = jnp.asarray(outputs)
        num = outputs.shape[-1] if outputs.ndim else 0
        require(
            num
            and outputs.shape in [(num,), (1, num)]
            and jnp.issubdtype(outputs.dtype, jnp.floating),
            "apply(params, x) must return floating-point outputs of shape (n,), one for each "
            f"class, for one example; got shape {outputs.shape} and dtype {outputs.dtype}. Of a "
            "batch, jax.vmap the explainer over x.",
        )
        outputs = outputs.reshape(num)
        if not isinstance(label, Tracer):
            try:
                if isinstance(label, bool):  # traced, it is refused too
                    raise TypeError
                label = operator.index(label)
            except TypeError:
                raise TypeError(
                    f"label must be one integer; got {label!r:.80}. Of a one-hot label type "
                    "jnp.argmax(label)."
                ) from None
            single = " There is one output: for the other of two classes explain minus it."
            require(
                0 <= label < num,
                f"label must be from 0 to {num - 1}; got {label}.{single if num == 1 else ''}",
            )
            return outputs[label]
        require(
            label.shape == () and jnp.issubdtype(label.dtype, jnp.integer),
            f"label must be one integer; got shape {label.shape} and dtype {label.dtype}.",
            TypeError,
        )
        if jnp.iinfo(label.dtype).bits < 32:  # it might not hold the number of classes
            label = label.astype(jnp.int32)
        known = (0 <= label) & (label < num)
        # Times NaN, since the derivative of what is chosen or filled in would be 0.
        return outputs[label] * jnp.where(known, 1, jnp.nan).astype(outputs.dtype)

    return score
