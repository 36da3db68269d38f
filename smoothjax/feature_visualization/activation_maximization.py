"""The ascent: an optimizer, a parameterization, augmentations and penalties put together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._checks import (
    check_differentiable,
    check_function,
    check_integer,
    check_scalar,
    require,
)
from smoothjax._loop import check_count
from smoothjax._transform import keyed, transform
from smoothjax._trees import is_real
from smoothjax._typing import Score
from smoothjax.feature_visualization.augmentations import Augmentation, chain, jitter, zoom
from smoothjax.feature_visualization.parameterizations import Parameterization, fourier
from smoothjax.feature_visualization.penalties import Penalty


class Visualization(NamedTuple):
    """What an objective looks for, and how it was found.

    Attributes:
      image: of the given shape, inside the bounds.
      history: the objective before each step, of the augmented image and without the penalty, of
        shape (num_steps,).
    """

    image: jax.Array
    history: jax.Array


@transform(takes_key=True)
def activation_maximization(
    objective: Score,
    optimizer: Any,
    *,
    shape: tuple[int, ...],
    bounds: tuple[Any, Any] | None,
    num_steps: int = 256,
    parameterization: Parameterization = fourier(),
    augment: Augmentation | None = chain(jitter(16), zoom(0.9, 1.1)),
    penalty: Penalty | None = None,
) -> Callable[..., Visualization]:
    """Returns a function that finds an image of which an objective is great.

    It climbs `objective(params, augment(key_t, x), *rest) - penalty(x)` in the coefficients z of
    the image `x = lo + (hi - lo) * logistic(parameterization.image(z))`, by the steps of the
    optimizer.

    An objective without a gradient at the start leaves the image as it is, grey: a channel behind a
    ReLU, say, which is silent there. Take its values before the ReLU, or begin with a greater std.

    With noise on the weights it shows what survives it. `noisegrad(objective, sigma,
    num_samples=1)` draws new weights at each step, always from those given, without bias and with
    one network in memory. The paper climbs the mean of one set of networks instead:
    `functools.partial(noisegrad(objective, sigma), key)` freezes it.

    Args:
      objective: a function `objective(params, image, *rest)` that returns a scalar: a logit, the
        mean of a channel, a neuron, a direction, a sum of those; or a stochastic one, with a key
        first, which gets another at each step.
      optimizer: one of optax, such as `optax.adam(0.1)`: an object with `init(z)` and
        `update(gradients, state, z)`, whose updates descend and are added. Schedules are its own.
      shape: the shape of the image, without a batch axis.
      bounds: a pair (lo, hi) that broadcasts to the image, in the units that the objective takes:
        after normalisation, if the image is normalised. None for numbers without bounds.
      num_steps: the number of steps.
      parameterization: how the image is written: `fourier()`, `maco()`, `pixels()`, or one of
        yours, a `Parameterization`.
      augment: a function `augment(key, image)` of what the objective is shown, with a new key at
        each step; None for the image itself.
      penalty: a function `penalty(image)` that returns a scalar, which is subtracted.

    Returns:
      A function `maximize(key, params, *rest)` that returns a `Visualization`. `jax.vmap` over rest
      or over keys makes a batch; over rest alone, with `in_axes=None` for the key, it shares the
      draws of the weights, and images differ by what is asked only.

    Raises:
      TypeError, ValueError: here for bad settings; when called, for an objective that is no scalar,
        and for a parameterization, augmentation or bounds that do not fit the shape.

    Cost: `num_steps` gradients of the objective, and little more; the memory of one. The objective
    is traced once.

    Source: Olah et al. 2017, "Feature Visualization", Distill, doi 10.23915/distill.00007; Bykov et
    al. 2022, arXiv 2106.10185, for the noise on the weights.

    >>> from smoothjax.feature_visualization import activation_maximization, pixels
    >>> import optax
    >>> maximize = activation_maximization(
    ...     lambda w, x: w @ x - x @ x / 2,
    ...     optax.sgd(0.5),
    ...     shape=(3,),
    ...     bounds=None,
    ...     parameterization=pixels(),
    ...     augment=None,
    ... )
    >>> found = jax.jit(maximize)(jax.random.key(0), jnp.array([1.0, 2.0, 3.0]))
    >>> print(found.image.round(2), found.history.shape)
    [1. 2. 3.] (256,)
    """
    ascends = all(callable(getattr(optimizer, name, None)) for name in ("init", "update"))
    require(
        ascends and not isinstance(optimizer, type),
        "optimizer must be one of optax, with init and update, such as optax.adam(0.1); got "
        f"{optimizer!r:.80}.",
        TypeError,
    )
    shape = _check_shape(shape)
    squash = _squashing(bounds, shape)
    num_steps = check_count(num_steps, "num_steps")
    require(
        isinstance(parameterization, Parameterization),
        "parameterization must be one like fourier(), with the parentheses; got "
        f"{parameterization!r:.80}.",
        TypeError,
    )
    if augment is not None:
        check_function(augment, "augment")
    if penalty is not None:
        check_function(penalty, "penalty")
    inner = keyed(objective)

    def image_of(coefficients):
        image = parameterization.image(coefficients, shape)
        require(
            image.shape == shape,
            f"the parameterization made an image of shape {image.shape} for shape={shape}.",
        )
        return squash(image)

    def maximize(key, params, *rest, **kwargs):
        init_key, steps_key = jax.random.split(key)

        def goal(coefficients, key):
            augment_key, objective_key = jax.random.split(key)
            image = image_of(coefficients)
            seen = image if augment is None else augment(augment_key, image)
            value = check_differentiable(inner(objective_key, params, seen, *rest, **kwargs))
            cost = jnp.zeros_like(value) if penalty is None else check_scalar(penalty(image))
            return value - cost.astype(value.dtype), value

        def step(carry, i):
            coefficients, state = carry
            gradients, value = jax.grad(goal, has_aux=True)(
                coefficients, jax.random.fold_in(steps_key, i)
            )
            descent = jax.tree.map(jnp.negative, gradients)
            updates, state = optimizer.update(descent, state, coefficients)
            return (jax.tree.map(jnp.add, coefficients, updates), state), value

        start = parameterization.init(init_key, shape)
        steps = jnp.arange(num_steps, dtype=jnp.int32)
        (coefficients, _), history = jax.lax.scan(step, (start, optimizer.init(start)), steps)
        return Visualization(image_of(coefficients), history)

    return maximize


def _check_shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list)) else None
    require(sizes, f"shape must be a tuple like (224, 224, 3); got {shape!r:.80}.", TypeError)
    return tuple(check_integer(size, "each of shape", least=1) for size in sizes or ())


def _squashing(bounds: Any, shape: tuple[int, ...]) -> Callable[[jax.Array], jax.Array]:
    """The function that brings an image inside its bounds."""
    if bounds is None:
        return lambda image: image
    is_pair = isinstance(bounds, (tuple, list)) and len(bounds) == 2 and all(map(is_real, bounds))
    require(
        is_pair,
        f"bounds must be a pair (lo, hi) of numbers or arrays, or None; got {bounds!r:.80}.",
        TypeError,
    )
    lo, hi = (np.asarray(bound, float) for bound in bounds)
    require(np.all(lo < hi), f"bounds must have lo < hi everywhere; got {lo} and {hi}.")
    try:
        lo, hi = (np.broadcast_to(bound, shape) for bound in (lo, hi))
    except ValueError as error:
        raise ValueError(f"bounds do not broadcast to shape={shape}: {error}.") from None

    def squash(image):
        least, span = (jnp.asarray(array, image.dtype) for array in (lo, hi - lo))
        return least + span * jax.nn.sigmoid(image)

    return squash
