"""Function transforms that smooth explanations: each takes a function and returns a function."""

import importlib
import typing

from smoothjax import attribution as attribution
from smoothjax import calibrate as calibrate
from smoothjax import evaluation as evaluation
from smoothjax import feature_visualization as feature_visualization
from smoothjax import metrics as metrics
from smoothjax import noise as noise
from smoothjax import reductions as reductions
from smoothjax import spectral as spectral
from smoothjax._shown import listed as _listed
from smoothjax._transform import is_stochastic as is_stochastic
from smoothjax._transform import stochastic as stochastic
from smoothjax.attribution import deconvnet as deconvnet
from smoothjax.attribution import expected_gradients as expected_gradients
from smoothjax.attribution import gradcam as gradcam
from smoothjax.attribution import gradcam_plus_plus as gradcam_plus_plus
from smoothjax.attribution import guided_backprop as guided_backprop
from smoothjax.attribution import hsic as hsic
from smoothjax.attribution import input_times_gradient as input_times_gradient
from smoothjax.attribution import integrated_gradients as integrated_gradients
from smoothjax.attribution import kernel_shap as kernel_shap
from smoothjax.attribution import lime as lime
from smoothjax.attribution import lrp as lrp
from smoothjax.attribution import occlusion as occlusion
from smoothjax.attribution import rise as rise
from smoothjax.attribution import saliency as saliency
from smoothjax.attribution import smoothdiff as smoothdiff
from smoothjax.attribution import sobol as sobol
from smoothjax.calibrate import accuracy_drop as accuracy_drop
from smoothjax.calibrate import sigma_for_accuracy_drop as sigma_for_accuracy_drop
from smoothjax.calibrate import tune_chunk_size as tune_chunk_size
from smoothjax.evaluation import evaluate as evaluate
from smoothjax.noise import adaptive as adaptive
from smoothjax.noise import by_path as by_path
from smoothjax.noise import relative as relative
from smoothjax.pooling import pool as pool
from smoothjax.scores import class_score as class_score
from smoothjax.smoothing import adaptgrad as adaptgrad
from smoothjax.smoothing import fusiongrad as fusiongrad
from smoothjax.smoothing import noisegrad as noisegrad
from smoothjax.smoothing import smoothgrad as smoothgrad
from smoothjax.smoothing import squaregrad as squaregrad
from smoothjax.smoothing import vargrad as vargrad
from smoothjax.spectral import forgrad as forgrad
from smoothjax.spectral import lowpass as lowpass
from smoothjax.spectral import smoothgrad_toward as smoothgrad_toward

__version__ = "0.1.0"

if typing.TYPE_CHECKING:
    from smoothjax import plotting as plotting
    from smoothjax import zoo as zoo


def __getattr__(name: str) -> typing.Any:
    """Imports what needs an extra when it is first used."""
    if name not in ("plotting", "zoo"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:  # hasattr and help go on without the extra
        raise AttributeError(str(error)) from error


__dir__ = _listed(
    globals(),
    "attribution",
    "calibrate",
    "evaluation",
    "feature_visualization",
    "metrics",
    "noise",
    "plotting",
    "reductions",
    "spectral",
    "zoo",
)
