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

import jax
import jax.numpy as jnp

from smoothjax._checks import check_function, check_scalar, require
from smoothjax._transform import is_stochastic, keyed, name_of, transform
from smoothjax._trees import wide_dtype
from smoothjax._typing import Explainer, Score

Features = Callable[..., jax.Array]


@transform(of=1)
def gradcam(features: Features, head: Score, *, upsample: bool = True) -> Explainer:
    """Returns an explainer of the activations, weighted by each channel's mean gradient (Grad-CAM).

    `relu(sum_c w_c A_c)` with the activations A and `w_c` the mean over all places of the gradient
    of the score with respect to `A_c`. After global average pooling and a linear layer, this is
    CAM: the activations times the layer's weights, here over the number of places.

    Args:
      features: a function `features(params, x)` that returns activations (h, w, channels), usually
        those of the last convolution; (time, channels) for a signal.
      head: a function `head(params, activations, *rest)` that returns the score, a scalar.
      upsample: whether to resize the map bilinearly to the height and width of x. x is then an
        array with the axes of the activations, (H, W, any channels).

    Returns:
      An explainer `explain(params, x, *rest)` of maps of shape (H, W, 1), or (h, w, 1) without
      upsampling, nowhere negative, in the units of the score.

    Raises:
      TypeError, ValueError: here if one of the two is no function or stochastic (smooth the
        explainer instead, `noisegrad(gradcam(features, head))`); when called, for activations
        without spatial axes, a score that is no real scalar, or an x that the map cannot be resized
        to.

    Cost: one evaluation of `features`, and one gradient of `head`.

    Source: Selvaraju et al. 2017, arXiv 1610.02391.

    >>> features = lambda params, x: jax.nn.relu(x)
    >>> head = lambda params, activations: jnp.mean(activations, axis=(0, 1)) @ params
    >>> explain = jax.jit(sj.gradcam(features, head))
    >>> explain(jnp.array([1.0, 3.0]), jnp.array([[[0.0, 2.0], [5.0, -1.0]]]))[..., 0]
    Array([[3. , 2.5]], dtype=float32)
    """

    def weights(activations, gradient):
        del activations
        return jnp.mean(gradient, axis=_places(gradient), keepdims=True)

    return _weighted_activations(features, head, upsample, weights)


@transform(of=1)
def gradcam_plus_plus(features: Features, head: Score, *, upsample: bool = True) -> Explainer:
    """Returns an explainer like Grad-CAM whose places weigh more the fewer of them there are.

    `relu(sum_c w_c A_c)` with `w_c = sum_ij r_ij / (2 + r_ij sum_ab A_ab)`, `r = relu(g)`, g the
    gradient of the score with respect to `A_c`. This is Grad-CAM++ of the exponential of the score,
    as in the paper, whose factor exp(score) is left out: it would only scale the map, and overflow.
    The activations are to be nowhere negative, as after a ReLU, or the denominator could vanish.

    Args:
      features: a function `features(params, x)` that returns activations, as in `gradcam`.
      head: a function `head(params, activations, *rest)` that returns the score, a scalar: a logit,
        not a probability.
      upsample: whether to resize the map bilinearly to the height and width of x, as in `gradcam`.

    Returns:
      An explainer `explain(params, x, *rest)` of maps of shape (H, W, 1), or (h, w, 1) without
      upsampling, nowhere negative.

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

    def weights(activations, gradient):
        places = _places(activations)
        total = jnp.sum(activations, axis=places, keepdims=True)
        positive = jax.nn.relu(gradient)  # below too, where a negative one could make it vanish
        shares = positive / (2 + positive * total)
        return jnp.sum(shares, axis=places, keepdims=True)

    return _weighted_activations(features, head, upsample, weights)


def _weighted_activations(features, head, upsample, weights):
    """The explainer `relu(sum_c w_c A_c)` with `w = weights(A, gradient of head)`."""
    check_function(features, "features")
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

        def score_of(activations):
            return check_scalar(head(key, params, activations, *rest, **kwargs))

        gradient = jax.grad(score_of)(activations)
        wide = wide_dtype(activations.dtype)
        a, g = activations.astype(wide), gradient.astype(wide)
        total = jnp.sum(weights(a, g) * a, axis=-1, keepdims=True)
        cam = jax.nn.relu(total).astype(activations.dtype)
        return jax.image.resize(cam, _size(x, cam), "linear") if upsample else cam

    return explain


def _places(activations):
    """The axes of the activations but the channels."""
    return tuple(range(activations.ndim - 1))


def _size(x, cam):
    require(
        jnp.ndim(x) == cam.ndim,
        f"a map of shape {cam.shape} can be resized to an x with as many axes, like (H, W, 3); got "
        f"x of shape {jnp.shape(x)}. Type upsample=False to leave it.",
    )
    return (*jnp.shape(x)[:-1], 1)
