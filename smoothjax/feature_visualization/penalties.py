"""What an image is charged for: functions of the image alone, in its own units."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from smoothjax._axes import IMAGE, axes_of, check_axes
from smoothjax._checks import check_number
from smoothjax._transform import noted
from smoothjax._typing import Axes

Penalty = Callable[[jax.Array], jax.Array]


@noted
def total_variation(weight: float, axes: Axes = IMAGE) -> Penalty:
    """Returns the penalty `weight * sum over axes of mean |x[i + 1] - x[i]|`.

    Args:
      weight: the factor, in units of the objective per unit of the image.
      axes: the axes that span the image; (0,) for a signal.

    Returns:
      A function `penalty(image)` that returns a scalar. Penalties add:
      `lambda x: total_variation(10)(x) + l2(1)(x)`.

    Raises:
      TypeError, ValueError: for a bad setting; when called, for an image without such axes.

    Source: Mahendran and Vedaldi 2015, arXiv 1412.0035, there squared first.

    >>> print(sj.feature_visualization.total_variation(2.0, axes=(0,))(jnp.array([0.0, 1.0, 0.0])))
    2.0
    """
    weight = check_number(weight, "weight")
    axes = check_axes(axes)

    def penalty(image):
        steps = [jnp.abs(jnp.diff(image, axis=axis)) for axis in axes_of(image.shape, axes)]
        return weight * jnp.stack(list(map(jnp.mean, steps))).sum()

    return penalty


@noted
def l2(weight: float) -> Penalty:
    """Returns the penalty `weight * mean x ** 2`, which keeps an image near 0.

    Args:
      weight: the factor, in units of the objective per squared unit of the image.

    Returns:
      A function `penalty(image)` that returns a scalar.

    Raises:
      TypeError, ValueError: for a bad setting.

    Source: Simonyan et al. 2014, arXiv 1312.6034, there of the sum.

    >>> print(sj.feature_visualization.l2(2.0)(jnp.array([1.0, 0.0])))
    1.0
    """
    weight = check_number(weight, "weight")
    return lambda image: weight * jnp.mean(image**2)
