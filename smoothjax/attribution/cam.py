"""Class activation maps: which places of a layer's activations speak for a score.

They split a network in two: `features(params, x)` returns activations (h, w, channels) and
`head(params, activations, *rest)` the score. The same two functions put noise on an inner layer
instead of the input:

>>> features = lambda params, x: jax.nn.relu(x @ params["layer"])
>>> head = lambda params, activations, label: (activations @ params["out"])[label]
>>> params = {"layer": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
>>> explain = jax.jit(sj.smoothgrad(sj.saliency(head), sigma=0.1))
>>> explain(jax.random.key(0), params, features(params, jnp.ones(3)), 1)
Array([1., 1., 1., 1.], dtype=float32)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from smoothjax._axes import LAST, check_pooled_axis, check_time_first
from smoothjax._checks import check_differentiable, check_function, check_integer, require
from smoothjax._transform import is_stochastic, keyed, name_of, transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Explainer, Score

Features = Callable[..., jax.Array]


@transform(of=1)
def gradcam(
    features: Features, head: Score, *, channel_axis: int = LAST, upsample: bool = True
) -> Explainer:
    """Returns an explainer of the activations, weighted by each channel's mean gradient (Grad-CAM).

    `relu(sum_c w_c A_c)` with the activations A and `w_c` the mean over all places of the gradient
    of the score with respect to `A_c`. After global average pooling and a linear layer, this is
    CAM: the activations times the layer's weights, here over the number of places.

    Args:
      features: a function `features(params, x)` that returns activations (h, w, channels), usually
        those of the last convolution; (time, channels) for a signal.
      head: a function `head(params, activations, *rest)` that returns the score, a scalar.
      channel_axis: the channel axis of the activations, and of x: the last one, or 0 for channels
        first.
      upsample: whether to resize the map bilinearly to the height and width of x. x is then one
        array with the axes of the activations, (H, W, any channels).

    Returns:
      An explainer `explain(params, x, *rest)` of maps like x with a channel axis of length 1, (H,
      W, 1), or (h, w, 1) without upsampling, nowhere negative, in the units of the score. What
      speaks against the score is cut off; the map of `-score` shows it.

    Raises:
      TypeError, ValueError: here if one of the two is no function or stochastic (smooth the
        explainer instead, `noisegrad(gradcam(features, head))`); when called, for activations
        without spatial axes, a score that is no real scalar, an x that the map cannot be resized
        to or would have to shrink for, or an x or activations that look like channels first, unless
        `channel_axis` is typed.

    Cost: one evaluation of `features`, and one gradient of `head`.

    Source: Selvaraju et al. 2017, arXiv 1610.02391. Other libraries resize otherwise, above all at
    the edges (OpenCV, PyTorch), or scale the map to [0, 1] (tf-keras-vis).

    >>> features = lambda params, x: jax.nn.relu(x)
    >>> head = lambda params, activations: jnp.mean(activations, axis=(0, 1)) @ params
    >>> explain = jax.jit(sj.gradcam(features, head))
    >>> explain(jnp.array([1.0, 3.0]), jnp.array([[[0.0, 2.0]], [[5.0, -1.0]]]))[..., 0]
    Array([[3. ],
           [2.5]], dtype=float32)
    """

    def weights(activations, gradient, places):
        del activations
        return jnp.mean(gradient, axis=places, keepdims=True)

    return _weighted_activations(features, head, channel_axis, upsample, weights)


@transform(of=1)
def gradcam_plus_plus(
    features: Features, head: Score, *, channel_axis: int = LAST, upsample: bool = True
) -> Explainer:
    """Returns an explainer like Grad-CAM whose places weigh more the fewer of them there are.

    `relu(sum_c w_c A_c)` with `w_c = sum_ij r_ij / (2 + r_ij sum_ab A_ab)`, `r = relu(g)`, g the
    gradient of the score with respect to `A_c`. This is Grad-CAM++ of the exponential of the score,
    as in the paper, whose factor exp(score) is left out: it would only scale the map, and overflow.
    The activations are to be nowhere negative, as after a ReLU, or the denominator could vanish.
    The authors' code and tf-keras-vis divide a channel's `1 / (2 + ...)` by their sum over places,
    and draw other maps: theirs correlate with this one, of the paper's formula, by 0.72 and 0.83.

    Args:
      features: a function `features(params, x)` that returns activations, as in `gradcam`.
      head: a function `head(params, activations, *rest)` that returns the score, a scalar: a logit,
        not a probability.
      channel_axis: the channel axis of the activations, and of x, as in `gradcam`.
      upsample: whether to resize the map bilinearly to the height and width of x, as in `gradcam`.

    Returns:
      An explainer `explain(params, x, *rest)` of maps as those of `gradcam`, nowhere negative.

    Raises:
      TypeError, ValueError: as `gradcam` does.

    Cost: one evaluation of `features`, and one gradient of `head`.

    Source: Chattopadhyay et al. 2018, arXiv 1710.11063.

    >>> features = lambda params, x: jax.nn.relu(x)
    >>> head = lambda params, activations: jnp.sum(activations)
    >>> explain = jax.jit(sj.gradcam_plus_plus(features, head))
    >>> explain(None, jnp.array([[[2.0], [0.0]]]))[..., 0]  # weight 2 / (2 + 2)
    Array([[1., 0.]], dtype=float32)
    """

    def weights(activations, gradient, places):
        total = jnp.sum(activations, axis=places, keepdims=True)
        positive = jax.nn.relu(gradient)  # below too, where a negative one could make it vanish
        shares = positive / (2 + positive * total)
        return jnp.sum(shares, axis=places, keepdims=True)

    return _weighted_activations(features, head, channel_axis, upsample, weights)


def _weighted_activations(features, head, channel_axis, upsample, weights):
    """The explainer `relu(sum_c w_c A_c)` with `w = weights(A, gradient of head, places)`."""
    check_function(features, "features")
    check_integer(channel_axis, "channel_axis")
    for fun in (features, head):
        require(
            not is_stochastic(fun),
            f"features and head take no PRNG key, but {name_of(fun)} does. Smooth the explainer "
            "instead, like noisegrad(gradcam(features, head)).",
            TypeError,
        )
    head = keyed(head)

    def explain(key, params, x, *rest, **kwargs):
        activations = features(params, x)
        dtype = getattr(activations, "dtype", None)
        if dtype is None or activations.ndim < 2 or not jnp.issubdtype(dtype, jnp.floating):
            got = (
                f"shape {activations.shape} and dtype {dtype}" if dtype else f"{activations!r:.80}"
            )
            raise ValueError(
                "features must return real floating-point activations (h, w, channels) of one "
                f"example; got {got}."
            )
        places = _places(activations.shape, x, channel_axis, upsample)

        def score_of(activations):
            return check_differentiable(head(key, params, activations, *rest, **kwargs))

        gradient = jax.grad(score_of)(activations)
        wide = wide_dtype(activations.dtype)
        a, g = activations.astype(wide), gradient.astype(wide)
        total = jnp.sum(weights(a, g, places) * a, axis=channel_axis, keepdims=True)
        cam = jax.nn.relu(total).astype(activations.dtype)
        if not upsample:
            return cam
        size = [length if axis in places else 1 for axis, length in enumerate(x.shape)]
        return jax.image.resize(cam, size, "linear")

    return explain


def _places(shape, x, channel_axis, upsample):
    """The axes of activations of that shape but the channels, or raises if they do not fit x."""
    require(
        -len(shape) <= channel_axis < len(shape),
        f"activations of shape {shape} have no channel axis {channel_axis}.",
    )
    places = tuple(axis for axis in range(len(shape)) if axis != channel_axis % len(shape))
    size: Any = getattr(x, "shape", ())
    check_pooled_axis(size, channel_axis)
    if channel_axis is LAST:
        check_time_first(size, "Type channel_axis=0 if it is that, channel_axis=-1 if it is not.")
        require(
            max(len(size), len(shape)) <= 3,
            f"unless channel_axis is typed, x is one image or signal; got {_described(x)}. Type "
            "channel_axis=-1 for volumes; a batch goes through jax.vmap.",
        )
    if upsample:
        require(
            len(size) == len(shape),
            f"a map of activations of shape {shape} can be resized to an x with as many axes, one "
            f"array like (H, W, 3); got {_described(x)}. Type upsample=False to leave it.",
        )
    if len(size) == len(shape) == 3 and channel_axis is LAST:
        # As high for its width as x is, read as channels first, and only so.
        first, last = (shape[i] * size[1] == shape[i + 1] * size[0] for i in (1, 0))
        require(
            last or not first,
            f"activations of shape {shape} of an x of shape {size} are taken for (channels, h, w). "
            "Type channel_axis=0 if x is like that too; else move them, jnp.moveaxis(a, 0, -1).",
        )
    if upsample:
        require(
            all(shape[axis] <= size[axis] for axis in places),
            f"a map of activations of shape {shape} would shrink to fit an x of shape {size}. Type "
            "the channel axis of both, channel_axis=0 for channels first, or upsample=False.",
        )
    return places


def _described(x):
    return f"shape {x.shape}" if hasattr(x, "shape") else f"a {type(x).__name__}"
