"""Metrics: how good an attribution, or an explainer, is."""

from smoothjax.metrics.axiom import completeness_error as completeness_error
