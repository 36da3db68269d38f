"""Methods: functions that take a score and return an explainer."""

import contextlib

with contextlib.suppress(ImportError):
    from smoothjax.attribution.baselines import blur as blur
with contextlib.suppress(ImportError):
    from smoothjax.attribution.baselines import channel_mean as channel_mean
with contextlib.suppress(ImportError):
    from smoothjax.attribution.cam import gradcam as gradcam
with contextlib.suppress(ImportError):
    from smoothjax.attribution.cam import gradcam_plus_plus as gradcam_plus_plus
with contextlib.suppress(ImportError):
    from smoothjax.attribution.gradient import expected_gradients as expected_gradients
with contextlib.suppress(ImportError):
    from smoothjax.attribution.gradient import gauss_legendre as gauss_legendre
with contextlib.suppress(ImportError):
    from smoothjax.attribution.gradient import input_times_gradient as input_times_gradient
with contextlib.suppress(ImportError):
    from smoothjax.attribution.gradient import integrated_gradients as integrated_gradients
with contextlib.suppress(ImportError):
    from smoothjax.attribution.gradient import saliency as saliency
with contextlib.suppress(ImportError):
    from smoothjax.attribution.hsic import hsic as hsic
with contextlib.suppress(ImportError):
    from smoothjax.attribution.occlusion import occlusion as occlusion
with contextlib.suppress(ImportError):
    from smoothjax.attribution.rise import rise as rise
with contextlib.suppress(ImportError):
    from smoothjax.attribution.sobol import sobol as sobol
