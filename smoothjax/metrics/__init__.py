"""Metrics: how good an attribution, or an explainer, is."""

import contextlib

with contextlib.suppress(ImportError):
    from smoothjax.metrics.axiom import completeness_error as completeness_error
with contextlib.suppress(ImportError):
    from smoothjax.metrics.complexity import entropy as entropy
with contextlib.suppress(ImportError):
    from smoothjax.metrics.complexity import gini as gini
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import Curve as Curve
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import area as area
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import deletion as deletion
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import deletion_curve as deletion_curve
with contextlib.suppress(ImportError):
    from smoothjax.metrics.correlation import faithfulness_correlation as faithfulness_correlation
with contextlib.suppress(ImportError):
    from smoothjax.metrics.infidelity import gaussian_perturbation as gaussian_perturbation
with contextlib.suppress(ImportError):
    from smoothjax.metrics.infidelity import infidelity as infidelity
with contextlib.suppress(ImportError):
    from smoothjax.metrics.information import information_curve as information_curve
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import insertion as insertion
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import insertion_curve as insertion_curve
with contextlib.suppress(ImportError):
    from smoothjax.metrics.curves import insertion_minus_deletion as insertion_minus_deletion
with contextlib.suppress(ImportError):
    from smoothjax.metrics.correlation import mu_fidelity as mu_fidelity
with contextlib.suppress(ImportError):
    from smoothjax.metrics.information import residual_bits as residual_bits
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import cell_mask as cell_mask
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import distinct_classes as distinct_classes
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import grid_pointing_game as grid_pointing_game
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import mosaic as mosaic
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import pointing_game as pointing_game
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import relevance_mass_accuracy as relevance_mass_accuracy
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import relevance_rank_accuracy as relevance_rank_accuracy
with contextlib.suppress(ImportError):
    from smoothjax.metrics.localization import roc_auc as roc_auc
with contextlib.suppress(ImportError):
    from smoothjax.metrics.randomization import consistency as consistency
with contextlib.suppress(ImportError):
    from smoothjax.metrics.randomization import invariance as invariance
with contextlib.suppress(ImportError):
    from smoothjax.metrics.layers import layers_at_depth as layers_at_depth
with contextlib.suppress(ImportError):
    from smoothjax.metrics.randomization import parameter_randomization as parameter_randomization
with contextlib.suppress(ImportError):
    from smoothjax.metrics.randomization import random_logit as random_logit
with contextlib.suppress(ImportError):
    from smoothjax.metrics.layers import redraw as redraw
with contextlib.suppress(ImportError):
    from smoothjax.metrics.robustness import average_sensitivity as average_sensitivity
with contextlib.suppress(ImportError):
    from smoothjax.metrics.robustness import local_lipschitz as local_lipschitz
with contextlib.suppress(ImportError):
    from smoothjax.metrics.robustness import max_sensitivity as max_sensitivity
with contextlib.suppress(ImportError):
    from smoothjax.metrics.similarity import cosine as cosine
with contextlib.suppress(ImportError):
    from smoothjax.metrics.similarity import pearson as pearson
with contextlib.suppress(ImportError):
    from smoothjax.metrics.similarity import spearman as spearman
with contextlib.suppress(ImportError):
    from smoothjax.metrics.similarity import ssim as ssim
