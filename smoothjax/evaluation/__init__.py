"""Judging explainers: all metrics of all explainers on all examples, ranked."""

from smoothjax._shown import listed as _listed
from smoothjax.evaluation.result import Comparison as Comparison
from smoothjax.evaluation.result import Evaluation as Evaluation
from smoothjax.evaluation.result import Ranking as Ranking
from smoothjax.evaluation.run import evaluate as evaluate

__dir__ = _listed(globals())
