"""Methods: functions that take a score and return an explainer."""

from smoothjax._shown import listed as _listed
from smoothjax.attribution import lrp_rules as lrp_rules
from smoothjax.attribution.baselines import blur as blur
from smoothjax.attribution.baselines import channel_mean as channel_mean
from smoothjax.attribution.cam import gradcam as gradcam
from smoothjax.attribution.cam import gradcam_plus_plus as gradcam_plus_plus
from smoothjax.attribution.gradient import expected_gradients as expected_gradients
from smoothjax.attribution.gradient import gauss_legendre as gauss_legendre
from smoothjax.attribution.gradient import input_times_gradient as input_times_gradient
from smoothjax.attribution.gradient import integrated_gradients as integrated_gradients
from smoothjax.attribution.gradient import saliency as saliency
from smoothjax.attribution.guided_backprop import deconvnet as deconvnet
from smoothjax.attribution.guided_backprop import guided_backprop as guided_backprop
from smoothjax.attribution.hsic import hsic as hsic
from smoothjax.attribution.kernel_shap import kernel_shap as kernel_shap
from smoothjax.attribution.lime import lime as lime
from smoothjax.attribution.lrp import lrp as lrp
from smoothjax.attribution.occlusion import occlusion as occlusion
from smoothjax.attribution.rise import rise as rise
from smoothjax.attribution.smoothdiff import smoothdiff as smoothdiff
from smoothjax.attribution.sobol import sobol as sobol

__dir__ = _listed(globals(), "lrp_rules")
