"""Function transforms that smooth explanations: each takes a function and returns a function."""

import contextlib

with contextlib.suppress(ImportError):
    from smoothjax import attribution as attribution
with contextlib.suppress(ImportError):
    from smoothjax import calibrate as calibrate
with contextlib.suppress(ImportError):
    from smoothjax import metrics as metrics
with contextlib.suppress(ImportError):
    from smoothjax import noise as noise
with contextlib.suppress(ImportError):
    from smoothjax import reductions as reductions
with contextlib.suppress(ImportError):
    from smoothjax import spectral as spectral
with contextlib.suppress(ImportError):
    from smoothjax._transform import is_stochastic as is_stochastic
with contextlib.suppress(ImportError):
    from smoothjax._transform import stochastic as stochastic
with contextlib.suppress(ImportError):
    from smoothjax.attribution import expected_gradients as expected_gradients
with contextlib.suppress(ImportError):
    from smoothjax.attribution import gradcam as gradcam
with contextlib.suppress(ImportError):
    from smoothjax.attribution import gradcam_plus_plus as gradcam_plus_plus
with contextlib.suppress(ImportError):
    from smoothjax.attribution import hsic as hsic
with contextlib.suppress(ImportError):
    from smoothjax.attribution import input_times_gradient as input_times_gradient
with contextlib.suppress(ImportError):
    from smoothjax.attribution import integrated_gradients as integrated_gradients
with contextlib.suppress(ImportError):
    from smoothjax.attribution import occlusion as occlusion
with contextlib.suppress(ImportError):
    from smoothjax.attribution import rise as rise
with contextlib.suppress(ImportError):
    from smoothjax.attribution import saliency as saliency
with contextlib.suppress(ImportError):
    from smoothjax.attribution import sobol as sobol
with contextlib.suppress(ImportError):
    from smoothjax.calibrate import accuracy_drop as accuracy_drop
with contextlib.suppress(ImportError):
    from smoothjax.calibrate import sigma_for_accuracy_drop as sigma_for_accuracy_drop
with contextlib.suppress(ImportError):
    from smoothjax.calibrate import tune_chunk_size as tune_chunk_size
with contextlib.suppress(ImportError):
    from smoothjax.evaluation import evaluate as evaluate
with contextlib.suppress(ImportError):
    from smoothjax.noise import adaptive as adaptive
with contextlib.suppress(ImportError):
    from smoothjax.noise import by_path as by_path
with contextlib.suppress(ImportError):
    from smoothjax.noise import relative as relative
with contextlib.suppress(ImportError):
    from smoothjax.pooling import pool as pool
with contextlib.suppress(ImportError):
    from smoothjax.smoothing import adaptgrad as adaptgrad
with contextlib.suppress(ImportError):
    from smoothjax.smoothing import fusiongrad as fusiongrad
with contextlib.suppress(ImportError):
    from smoothjax.smoothing import noisegrad as noisegrad
with contextlib.suppress(ImportError):
    from smoothjax.smoothing import smoothgrad as smoothgrad
with contextlib.suppress(ImportError):
    from smoothjax.smoothing import squaregrad as squaregrad
with contextlib.suppress(ImportError):
    from smoothjax.smoothing import vargrad as vargrad
with contextlib.suppress(ImportError):
    from smoothjax.spectral import forgrad as forgrad
with contextlib.suppress(ImportError):
    from smoothjax.spectral import lowpass as lowpass

__version__ = "0.1.0"
