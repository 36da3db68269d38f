"""Metrics: how good an attribution, or an explainer, is."""

from smoothjax._shown import listed as _listed
from smoothjax.metrics.axiom import completeness_error as completeness_error
from smoothjax.metrics.complexity import entropy as entropy
from smoothjax.metrics.complexity import gini as gini
from smoothjax.metrics.correlation import faithfulness_correlation as faithfulness_correlation
from smoothjax.metrics.correlation import mu_fidelity as mu_fidelity
from smoothjax.metrics.curves import Curve as Curve
from smoothjax.metrics.curves import area as area
from smoothjax.metrics.curves import deletion as deletion
from smoothjax.metrics.curves import deletion_curve as deletion_curve
from smoothjax.metrics.curves import insertion as insertion
from smoothjax.metrics.curves import insertion_curve as insertion_curve
from smoothjax.metrics.curves import insertion_minus_deletion as insertion_minus_deletion
from smoothjax.metrics.infidelity import gaussian_perturbation as gaussian_perturbation
from smoothjax.metrics.infidelity import infidelity as infidelity
from smoothjax.metrics.information import information_curve as information_curve
from smoothjax.metrics.information import residual_bits as residual_bits
from smoothjax.metrics.layers import layers_at_depth as layers_at_depth
from smoothjax.metrics.layers import redraw as redraw
from smoothjax.metrics.localization import cell_mask as cell_mask
from smoothjax.metrics.localization import distinct_classes as distinct_classes
from smoothjax.metrics.localization import grid_pointing_game as grid_pointing_game
from smoothjax.metrics.localization import mosaic as mosaic
from smoothjax.metrics.localization import pointing_game as pointing_game
from smoothjax.metrics.localization import relevance_mass_accuracy as relevance_mass_accuracy
from smoothjax.metrics.localization import relevance_rank_accuracy as relevance_rank_accuracy
from smoothjax.metrics.localization import roc_auc as roc_auc
from smoothjax.metrics.randomization import consistency as consistency
from smoothjax.metrics.randomization import invariance as invariance
from smoothjax.metrics.randomization import parameter_randomization as parameter_randomization
from smoothjax.metrics.randomization import random_logit as random_logit
from smoothjax.metrics.robustness import average_sensitivity as average_sensitivity
from smoothjax.metrics.robustness import local_lipschitz as local_lipschitz
from smoothjax.metrics.robustness import max_sensitivity as max_sensitivity
from smoothjax.metrics.similarity import cosine as cosine
from smoothjax.metrics.similarity import pearson as pearson
from smoothjax.metrics.similarity import spearman as spearman
from smoothjax.metrics.similarity import ssim as ssim

__dir__ = _listed(globals())
