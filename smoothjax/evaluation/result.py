"""What `evaluate` returns: every score, and the tables, rankings and tests made of them."""

import dataclasses
import itertools
import json
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from smoothjax._shown import plus_minus
from smoothjax._statistics import t_test
from smoothjax.reductions import Estimate

_EPSILON = np.finfo(np.float32).eps.item()


class Comparison(NamedTuple):
    """A paired comparison of two explainers in a ranking.

    Attributes:
      better: the explainer of the better mean.
      worse: the other.
      difference: the mean over examples of the scores of `better` minus those of `worse`.
      stderr: the standard error of this mean.
      p_value: of the paired t-test that it is 0, two-sided, times the number of pairs of
        explainers, at most 1; NaN for fewer than two examples. Where all differences are equal but
        for the rounding of float32, of the sign test; 1 if they are no more than that rounding.
      num_examples: how many examples both have a score on.
      num_dropped: how many others there are: those where a score is NaN.
      agrees: whether the difference does not favour `worse`. It may where scores are NaN: a mean is
        over all scores of its explainer, the difference over the examples that both have one on.
    """

    better: str
    worse: str
    difference: float
    stderr: float
    p_value: float
    num_examples: int
    num_dropped: int
    agrees: bool

    @property
    def differ(self) -> bool:
        """Whether `better` is so beyond chance: p_value < 0.05, and the difference agrees."""
        return self.agrees and self.p_value < 0.05


class Ranking(NamedTuple):
    """The explainers by one metric, best first; its `str` is a list of them.

    A notebook shows the table of all pairs.

    Attributes:
      metric: the metric's name.
      lower_is_better: its direction.
      estimates: the mean score of each explainer, an `Estimate`, in the order of the ranking.
      pairs: the `Comparison` of each pair of explainers, by their names, the better first.
    """

    metric: str
    lower_is_better: bool
    estimates: dict[str, Estimate]
    pairs: dict[tuple[str, str], Comparison]

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparison of each explainer with the next one."""
        return [self.pairs[pair] for pair in itertools.pairwise(self.estimates)]

    def pairwise(self) -> str:
        """Returns a Markdown table of the p-value of each pair of explainers.

        A row is an explainer, a column one that is above it in the ranking. Bold is what differs; a
        p-value in parentheses is of a difference that favours the lower one (`Comparison.agrees`).
        """
        names = list(self.estimates)
        rows = [["", "mean", *map(str, range(1, len(names)))]]
        for i, name in enumerate(names):
            tests = [self.pairs[above, name] for above in names[:i]]
            cells = [*map(_p_value, tests), *[""] * (len(names) - 1 - i)]
            rows.append([f"{i + 1}. {name}", plus_minus(self.estimates[name]), *cells])
        return _markdown(rows)

    def _repr_markdown_(self) -> str:
        return (
            f"{_cell_text(self.metric)}: {self._direction} is better. p-values of paired t-tests, "
            f"corrected for the number of pairs; bold differs beyond chance.\n\n{self.pairwise()}"
        )

    @property
    def _direction(self):
        return "lower" if self.lower_is_better else "higher"

    def __str__(self) -> str:
        """Returns a line for each explainer, which says how it differs from the one above."""
        names, means = list(self.estimates), list(map(plus_minus, self.estimates.values()))
        widths = max(map(len, names)), max(map(len, means))
        lines = [f"{self.metric}: {self._direction} is better; each is compared with the one above"]
        for i, (name, mean) in enumerate(zip(names, means, strict=True)):
            line = f"{i + 1:2d}. {name:{widths[0]}}  {mean:{widths[1]}}"
            if i > 0:
                test = self.comparisons[i - 1]
                dropped = f", {test.num_dropped} dropped" if test.num_dropped else ""
                if test.differ:
                    line += "  differs"
                elif test.p_value < 0.05:
                    line += "  the other way round on the shared examples"
                else:
                    line += "  not shown to differ"
                line += f" (p = {test.p_value:.2g}, n = {test.num_examples}{dropped})"
            lines.append(line.rstrip())
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """Every score of every example; its `str` is a table of their means in Markdown.

    A score that is NaN stays NaN here. Means and tests leave it out and say over how many examples
    they are.

    Attributes:
      scores: for each explainer, for each metric, a float64 array of shape (num_examples,).
    """

    scores: dict[str, dict[str, np.ndarray]]

    def summary(self) -> dict[str, dict[str, Estimate]]:
        """Returns for each explainer, for each metric, the mean over examples.

        Each is an `Estimate(mean, stderr, num_samples)` over the scores that are not NaN. Its
        standard error is NaN for fewer than two.
        """
        return _map(_mean, self.scores)

    def __str__(self) -> str:
        """Returns a Markdown table of mean and standard error, and n where some are NaN."""
        rows = [["", *next(iter(self.scores.values()))]]
        for explainer, row in self.scores.items():
            rows.append(
                [explainer, *(_cell(_mean(scores), len(scores)) for scores in row.values())]
            )
        return _markdown(rows)

    def _repr_markdown_(self) -> str:
        return str(self)

    def ranking(self, metric: str, *, lower_is_better: bool) -> Ranking:
        """Returns the explainers from best to worst mean, each compared with each.

        Two are compared by a paired t-test on the examples that both have a score on. It takes
        their mean difference to be normal: beware of few examples with a few large scores. p-values
        are Bonferroni's, times the number of all pairs of explainers. They do not correct for
        looking at many metrics.

        Args:
          metric: its name.
          lower_is_better: its direction, which its docstring gives.

        Returns:
          A `Ranking`. An explainer without a score is last.

        Raises:
          ValueError: if there is no such metric.
        """
        columns = {name: row.get(metric) for name, row in self.scores.items()}
        if any(scores is None for scores in columns.values()):
            known = list(next(iter(self.scores.values())))
            raise ValueError(f"ranking: there is no metric {metric!r}; there are {known}.")
        means = {name: _mean(scores) for name, scores in columns.items()}

        def place(name):
            mean = means[name].mean
            return math.isnan(mean), mean if lower_is_better else -mean

        order = sorted(columns, key=place)
        num_pairs = math.comb(len(order), 2)
        sign = -1 if lower_is_better else 1
        pairs = {
            (better, worse): _compare(
                better, worse, columns[better], columns[worse], num_pairs, sign
            )
            for better, worse in itertools.combinations(order, 2)
        }
        return Ranking(metric, lower_is_better, {n: means[n] for n in order}, pairs)

    def to_json(self) -> str:
        """Returns the scores as JSON, numbers that are not finite as strings like "NaN"."""
        return json.dumps({"scores": _map(to_list, self.scores)}, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Evaluation":
        """Returns the `Evaluation` that `to_json` wrote, exactly."""
        return Evaluation(_map(to_array, json.loads(text)["scores"]))

    def to_pandas(self) -> Any:
        """Returns a `pandas.DataFrame` with a column for each metric.

        Its index has the levels "explainer" and "example".

        Raises:
          ImportError: if pandas is not installed.
        """
        try:
            import pandas  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError(
                "to_pandas needs pandas: pip install pandas", name="pandas"
            ) from error
        frames = {name: pandas.DataFrame(row) for name, row in self.scores.items()}
        return pandas.concat(frames, names=["explainer", "example"])

    def plot(self) -> Any:
        """Returns a `matplotlib.figure.Figure` of the means and their standard errors.

        Raises:
          ImportError: if matplotlib is not installed.
        """
        from smoothjax import plotting

        return plotting.estimates(self.summary())


def to_list(scores):
    """Returns scores as JSON has them: numbers that are not finite as strings."""
    return [x if math.isfinite(x) else str(x) for x in scores.tolist()]


def to_array(values):
    """Returns the array that `to_list` was given."""
    return np.array([float(x) for x in values])


def _map(fun, scores):
    return {
        explainer: {metric: fun(values) for metric, values in row.items()}
        for explainer, row in scores.items()
    }


def _mean(scores) -> Any:
    scores = scores[~np.isnan(scores)]
    num: Any = len(scores)
    with np.errstate(invalid="ignore"):  # of infinite scores the deviation is NaN
        mean = scores.mean().item() if num else math.nan
        stderr = scores.std(ddof=1).item() / math.sqrt(num) if num > 1 else math.nan
    return Estimate(mean, stderr, num)


def _compare(better, worse, scores, others, num_pairs, sign):
    with np.errstate(invalid="ignore"):
        gaps = scores - others
    gap, stderr, num = _mean(gaps)
    rounding = _EPSILON * np.maximum(np.abs(scores), np.abs(others))
    if math.isnan(stderr):
        chance = math.nan
    elif not np.any(np.abs(gaps) > rounding):
        chance = 1.0
    elif not np.any(np.abs(gaps - gap) > rounding):
        # Their deviation is none that a t-test could use, but all have one sign.
        chance = min(1.0, num_pairs * 2.0 ** (1 - num))
    else:
        with jax.enable_x64(True):
            chance = min(1.0, num_pairs * float(t_test(gap, stderr, num)))
    return Comparison(better, worse, gap, stderr, chance, num, len(gaps) - num, not sign * gap < 0)


def _cell(estimate, num):
    count = f" (n = {estimate.num_samples})" if estimate.num_samples < num else ""
    return plus_minus(estimate) + count


def _p_value(test):
    text = f"{test.p_value:.2g}"
    if test.differ:
        return f"**{text}**"
    return text if test.agrees else f"({text})"


def _markdown(rows):
    """A Markdown table, whose first row is its head."""
    rows = [list(map(_cell_text, cells)) for cells in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in rows)


def _cell_text(text):
    """A name as the text of a cell: what would end the cell is escaped."""
    return text.replace("|", "\\|").replace("\n", " ")
