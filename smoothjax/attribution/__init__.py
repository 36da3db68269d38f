"""Methods: functions that take a score and return an explainer."""

from smoothjax.attribution.gradient import expected_gradients as expected_gradients
from smoothjax.attribution.gradient import gauss_legendre as gauss_legendre
from smoothjax.attribution.gradient import input_times_gradient as input_times_gradient
from smoothjax.attribution.gradient import integrated_gradients as integrated_gradients
from smoothjax.attribution.gradient import saliency as saliency
