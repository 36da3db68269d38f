"""Judging explainers: all metrics of all explainers on all examples, ranked."""

from smoothjax.evaluation.result import Comparison, Evaluation, Ranking
from smoothjax.evaluation.run import evaluate

__all__ = ["Comparison", "Evaluation", "Ranking", "evaluate"]
