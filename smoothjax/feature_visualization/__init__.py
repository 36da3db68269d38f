"""Feature visualization: the input that a class, a channel or any other objective looks for.

`activation_maximization` climbs a function of the parameters and an image. How the image is
written, how it is shaken before the network sees it, and what it is charged for are plain functions
that are passed in.
"""

from smoothjax._shown import listed as _listed
from smoothjax.feature_visualization.activation_maximization import (
    Visualization as Visualization,
)
from smoothjax.feature_visualization.activation_maximization import (
    activation_maximization as activation_maximization,
)
from smoothjax.feature_visualization.augmentations import chain as chain
from smoothjax.feature_visualization.augmentations import jitter as jitter
from smoothjax.feature_visualization.augmentations import rotate as rotate
from smoothjax.feature_visualization.augmentations import zoom as zoom
from smoothjax.feature_visualization.parameterizations import PHOTO_COLORS as PHOTO_COLORS
from smoothjax.feature_visualization.parameterizations import Parameterization as Parameterization
from smoothjax.feature_visualization.parameterizations import fourier as fourier
from smoothjax.feature_visualization.parameterizations import maco as maco
from smoothjax.feature_visualization.parameterizations import pixels as pixels
from smoothjax.feature_visualization.penalties import l2 as l2
from smoothjax.feature_visualization.penalties import total_variation as total_variation

__dir__ = _listed(globals(), "PHOTO_COLORS")
