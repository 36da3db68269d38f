"""Judging explainers: all metrics of all explainers on all examples, in one resumable run.

This is a driver, not a transform: unlike the functions that it judges, it runs eagerly, compiles
what it is given with `jax.jit`, and may write a file.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.scipy.special import betainc

from smoothjax.reductions import Estimate
from smoothjax.transform import Explainer, check_at_least, keyed

PyTree = Any
Metric = Callable[..., Any]

_FORMAT = "smoothjax.evaluate, version 1"


class Comparison(NamedTuple):
    """A paired comparison of two neighbours in a ranking.

    Attributes:
      better: the explainer of the better mean.
      worse: the next one.
      difference: the mean over examples of the scores of `better` minus those of `worse`; where
        scores are NaN, it may have another sign than that of the means.
      stderr: the standard error of this mean.
      p_value: of the paired t-test that it is 0, two-sided, times the number of pairs of
        explainers, at most 1; NaN for fewer than two examples.
      num_examples: how many examples both have a score on.
      num_dropped: how many others there are: those where a score is NaN.
    """

    better: str
    worse: str
    difference: float
    stderr: float
    p_value: float
    num_examples: int
    num_dropped: int

    @property
    def differ(self) -> bool:
        """Whether the difference is beyond chance: p_value < 0.05."""
        return self.p_value < 0.05


class Ranking(NamedTuple):
    """The explainers by one metric, best first; its `str` is a list of them.

    Attributes:
      metric: the metric's name.
      lower_is_better: its direction.
      estimates: the mean score of each explainer, an `Estimate`, in the order of the ranking.
      comparisons: of each explainer with the next one.
    """

    metric: str
    lower_is_better: bool
    estimates: dict[str, Estimate]
    comparisons: list[Comparison]

    def __str__(self) -> str:
        """Returns a line for each explainer, which says how it differs from the one above."""
        names, means = list(self.estimates), list(map(_plus_minus, self.estimates.values()))
        widths = max(map(len, names)), max(map(len, means))
        direction = "lower" if self.lower_is_better else "higher"
        lines = [f"{self.metric}: {direction} is better; each is compared with the one above"]
        for i, (name, mean) in enumerate(zip(names, means, strict=True)):
            line = f"{i + 1:2d}. {name:{widths[0]}}  {mean:{widths[1]}}"
            if i > 0:
                test = self.comparisons[i - 1]
                dropped = f", {test.num_dropped} dropped" if test.num_dropped else ""
                line += "  differs" if test.differ else "  not shown to differ"
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
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        return "\n".join("| " + " | ".join(map(str.ljust, cells, widths)) + " |" for cells in rows)

    def ranking(self, metric: str, *, lower_is_better: bool) -> Ranking:
        """Returns the explainers from best to worst mean, each compared with the next.

        Neighbours are compared by a paired t-test on the examples that both have a score on. It
        takes their mean difference to be normal: beware of few examples with a few large scores.
        Who are neighbours is known from the same scores, so p-values are Bonferroni's: times the
        number of all pairs of explainers. They do not correct for looking at many metrics.

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
        comparisons = [
            _compare(better, worse, columns[better], columns[worse], num_pairs)
            for better, worse in itertools.pairwise(order)
        ]
        return Ranking(metric, lower_is_better, {n: means[n] for n in order}, comparisons)

    def to_json(self) -> str:
        """Returns the scores as JSON, numbers that are not finite as strings like "NaN"."""
        return json.dumps({"scores": _map(_to_list, self.scores)}, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> "Evaluation":
        """Returns the `Evaluation` that `to_json` wrote, exactly."""
        return Evaluation(_map(_to_array, json.loads(text)["scores"]))

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


def evaluate(
    explainers: Mapping[str, Explainer],
    metrics: Mapping[str, Metric],
    explainer_metrics: Mapping[str, Callable[[Explainer], Metric]],
    params: PyTree,
    examples: tuple | Iterable[tuple],
    key: jax.Array,
    *,
    batch_size: int = 8,
    progress: bool = True,
    path: str | os.PathLike | None = None,
) -> Evaluation:
    """Returns an `Evaluation`: the scores of every explainer, by every metric, on every example.

    An attribution is computed once for each explainer and example, and judged by all `metrics`.
    Each explainer is one program, so are all of its `explainer_metrics`, and so are all `metrics`,
    for every explainer whose attributions have the same shape. Each is compiled once, for any
    number of examples: the last batch is padded.

    Example i has the key `fold_in(key, i)`, split in two, for the explainers and for the metrics,
    as in `best_cutoff`. So scores do not depend, but for rounding (and with threefry keys, JAX's
    default), on the batch size, on what else is asked for, or on interruptions. Explainers are
    compared under the same draws. The errors and tests over examples cover the draws too, which
    they would not if examples shared them: no number of examples would average those out.

    A key for each example makes each draw of weights a batch of weights, though. To share draws
    nevertheless, freeze the key: `functools.partial(noisegrad(explain), key)`, measured 1.6 times
    faster. Errors and tests then hold for these draws only.

    Args:
      explainers: functions `explain(params, x, *rest)`, or stochastic ones, by name.
      metrics: functions `metric(params, x, attribution, *rest)` of one example that return a real
        scalar, or stochastic ones, by name. To adapt a function of less, leave out what it does not
        take: `lambda params, x, attribution, *rest: gini(attribution)`. May be empty.
      explainer_metrics: functions that take an explainer and return a function `(params, x, *rest)`
        of one example to a real scalar, or a stochastic one, by name, such as
        `lambda explain: max_sensitivity(explain, radius=0.1)`. May be empty.
      params: the weights, a pytree. Leaves that are no arrays are left as they are.
      examples: a tuple `(xs, *rest)` of arrays with a leading axis of examples, such as
        `(xs, labels)`; or an iterable, of any length, of one tuple `(x, *rest)` for each example.
        All of `rest` goes to every explainer and metric.
      key: a typed PRNG key; unused if nothing is stochastic.
      batch_size: how many examples are judged at once; memory and speed only.
      progress: whether to show a bar with the time left (for an iterable without a length: the time
        taken). It needs tqdm; if that is not installed, none is shown.
      path: if given, a file that gets each batch of scores as soon as it is known, as lines of
        JSON. If it exists, what it holds is not computed again; explainers and examples may be
        added. It must have been written with the same key, params, metric names and examples, and
        by the same traced programs: a changed setting does not go unnoticed (what a callback does
        is not seen), nor a version of JAX that traces otherwise.

    Returns:
      An `Evaluation`: scores, table, rankings, JSON, pandas frame, and plot.

    Raises:
      TypeError, ValueError: before anything is compiled, for arguments that are not as above, a
        metric that does not return a scalar, or a file that holds something else; and for a later
        example that is unlike the first, or not the one that the file has scores of.

    Cost: that of all explainers and metrics, in the memory of a batch. With `path`, hashing the
    params and the examples.

    >>> import jax, jax.numpy as jnp, smoothjax as sj
    >>> from smoothjax.evaluation import evaluate
    >>> score = lambda params, x: jnp.sum(params * jnp.sin(x))
    >>> explainers = {"saliency": sj.saliency(score), "smooth": sj.smoothgrad(sj.saliency(score))}
    >>> error = sj.metrics.completeness_error(score)
    >>> metrics = {"completeness": lambda *args: abs(error(*args))}
    >>> xs = jax.random.normal(jax.random.key(1), (20, 3))
    >>> result = evaluate(explainers, metrics, {}, jnp.ones(3), (xs,), jax.random.key(0))
    >>> print(result.scores["smooth"]["completeness"].shape)
    (20,)
    >>> best, *_ = result.ranking("completeness", lower_is_better=True).estimates
    """
    _check_functions("explainers", explainers)
    _check_functions("metrics", metrics)
    _check_functions("explainer_metrics", explainer_metrics)
    columns = [*metrics, *explainer_metrics]
    if not explainers or not columns:
        raise ValueError("evaluate needs at least one explainer, and one metric of either kind.")
    if len(set(columns)) < len(columns):
        both = sorted(set(metrics) & set(explainer_metrics))
        raise ValueError(f"evaluate: {both} name both metrics and explainer_metrics; rename one.")
    if not _is_key(key) or key.shape:
        raise TypeError(f"evaluate: key must be one like jax.random.key(0); got {key!r:.80}.")
    check_at_least(batch_size, 1, "evaluate: batch_size")

    arrays, programs = _split(params)
    batches = _batches(examples, batch_size)
    first = next(batches)
    sample = (arrays, key, np.int32(0), jax.tree.map(lambda leaf: leaf[0], first[2]))
    judge, judge_batch = programs(_judge(metrics))
    batch_programs, fingerprints = {}, {}
    for name, explain in explainers.items():
        made = {metric: make(explain) for metric, make in explainer_metrics.items()}
        _check_functions(f"what explainer_metrics make of {name!r}", made)
        attribute, attribute_batch = programs(_attribute(explain))
        judge_explainer, judge_explainer_batch = programs(_judge(made))
        batch_programs[name] = attribute_batch, judge_explainer_batch
        try:
            attributed = attribute.trace(*sample)
            judged = judge.trace(*sample, attributed.out_info), judge_explainer.trace(*sample)
        except Exception as error:
            error.add_note(f"evaluate was tracing the explainer {name!r} and its metrics.")
            raise
        for traced in judged:
            _check_scores(traced.out_info, name)
        if path is not None:
            fingerprints[name] = " ".join(_fingerprint(t.jaxpr) for t in (attributed, *judged))

    record = _Record(explainers, columns)
    if path is not None:
        record.open(pathlib.Path(path), _header(key, arrays, columns), fingerprints)

    def work():
        for start, size, batch in itertools.chain([first], batches):
            record.check_examples(start, size, batch)
            for name in explainers:
                if not record.holds(name, start, size):
                    yield name, start, size, batch

    items = work()
    if progress:
        items = _with_bar(items, _num_items(examples, batch_size, record))
    with contextlib.closing(record):
        for name, start, size, batch in items:
            indices = start + np.arange(len(jax.tree.leaves(batch)[0]), dtype=np.int32)
            arguments = arrays, key, indices, batch
            attribute_batch, judge_explainer_batch = batch_programs[name]
            scores = judge_batch(*arguments, attribute_batch(*arguments)) if metrics else {}
            scores |= judge_explainer_batch(*arguments) if explainer_metrics else {}
            record.add(name, start, {m: np.asarray(s, float)[:size] for m, s in scores.items()})
    return Evaluation(record.arrays())


def _attribute(explain):
    """The function of one example to its attribution."""
    explain = keyed(explain)

    def attribute(params, key, index, example):
        return explain(_keys(key, index)[0], params, *example)

    return attribute


def _judge(metrics):
    """The function of one example, and its attribution if that is judged, to its scores."""
    # Sorted, for the program not to depend on their order.
    metrics = {metric: keyed(fun) for metric, fun in sorted(metrics.items())}

    def judge(params, key, index, example, *attribution):
        metric_key = _keys(key, index)[1]
        x, *rest = example
        return {m: fun(metric_key, params, x, *attribution, *rest) for m, fun in metrics.items()}

    return judge


def _keys(key, index):
    return jax.random.split(jax.random.fold_in(key, index))


def _split(params):
    """The arrays of params, and what makes of a function of params two programs of the arrays.

    The first is of one example, to be traced; the second of a batch, to be run.
    """

    def restore(arrays):
        def choose(array, leaf):
            return leaf if array is None else array

        return jax.tree.map(choose, arrays, params, is_leaf=lambda leaf: leaf is None)

    def programs(body):
        # The second finds the trace of the first again: a network takes seconds to trace.
        @jax.jit
        def of_example(arrays, *args):
            return body(restore(arrays), *args)

        @jax.jit
        def of_batch(arrays, key, *args):
            return jax.vmap(of_example, (None, None, *[0] * len(args)))(arrays, key, *args)

        return of_example, of_batch

    is_array = (jax.Array, np.ndarray, np.generic)
    arrays = jax.tree.map(lambda leaf: leaf if isinstance(leaf, is_array) else None, params)
    return arrays, programs


def _check_scores(returned, name):
    for metric, got in returned.items():
        dtype: Any = getattr(got, "dtype", None)
        shape = getattr(got, "shape", None)
        if shape != () or not jnp.isdtype(dtype, ("bool", "integral", "real floating")):
            got = f"an array of shape {shape} and dtype {dtype}" if dtype else f"{got!r:.200}"
            raise TypeError(
                f"evaluate: metric {metric!r} must return one real number for each example; for "
                f"explainer {name!r} it returned {got}."
            )


class _Record:
    """The scores so far, by explainer and example, and the file of them, if there is one."""

    def __init__(self, explainers, columns):
        self.columns = columns
        self.scores = {name: {} for name in explainers}
        self.num_examples = 0
        self.digests = {}
        self.file: Any = None

    def open(self, path, header, programs):
        self.path, self.programs = path, programs
        data = path.read_bytes() if path.exists() else b""
        # A line without its end was being written when a run was killed.
        kept = data[: data.rfind(b"\n") + 1]
        if kept:
            self._read(kept.splitlines(), header)
        elif not _to_line(header).startswith(data):
            raise ValueError(f"evaluate: {path} is no file of scores; name another.")
        self.file = path.open("ab")
        self.file.truncate(len(kept))
        if not kept:
            self._write(header)

    def _read(self, lines, header):
        try:
            found, *entries = map(json.loads, lines)
        except ValueError:
            found, entries = None, []
        if not isinstance(found, dict) or found.get("format") != header["format"]:
            raise ValueError(
                f"evaluate: {self.path} is no file of scores, or a damaged one; name another."
            )
        for field, value in header.items():
            if found[field] != value:
                raise self._mismatch(f"other {field}, {found[field]} instead of {value}")
        for entry in entries:
            name, start = entry["explainer"], entry["start"]
            if name in self.programs and entry["program"] != self.programs[name]:
                raise self._mismatch(
                    f"another program called {name!r}: a setting of it or of a metric, the shape "
                    "of an example, or JAX's version has changed"
                )
            self.digests.update(enumerate(entry["examples"], start))
            if name in self.scores:
                self._take(name, start, {m: _to_array(s) for m, s in entry["scores"].items()})

    def check_examples(self, start, size, batch):
        self.num_examples = start + size
        if self.file is None:
            return
        leaves = [_to_numpy(leaf) for leaf in jax.tree.leaves(batch)]
        for row in range(size):
            digest = _digest([leaf[row] for leaf in leaves])
            if self.digests.setdefault(start + row, digest) != digest:
                raise self._mismatch(f"another example {start + row}")

    def _mismatch(self, what):
        return ValueError(
            f"evaluate: {self.path} holds scores of {what}. Name another file, or delete this one."
        )

    def holds(self, name, start, size):
        return all(i in self.scores[name] for i in range(start, start + size))

    def add(self, name, start, scores):
        num = self._take(name, start, scores)
        if self.file is not None:
            self._write(
                {
                    "explainer": name,
                    "program": self.programs[name],
                    "start": start,
                    "examples": [self.digests[i] for i in range(start, start + num)],
                    "scores": {metric: _to_list(values) for metric, values in scores.items()},
                }
            )

    def _take(self, name, start, scores):
        rows = list(zip(*(scores[metric] for metric in self.columns), strict=True))
        self.scores[name].update(enumerate(rows, start))
        return len(rows)

    def _write(self, entry):
        self.file.write(_to_line(entry))
        self.file.flush()

    def arrays(self):
        tables = {
            name: np.array([rows[i] for i in range(self.num_examples)], float)
            for name, rows in self.scores.items()
        }
        return {n: dict(zip(self.columns, t.T.copy(), strict=True)) for n, t in tables.items()}

    def close(self):
        if self.file is not None:
            self.file.close()


def _batches(examples, batch_size) -> Iterator[tuple[int, int, PyTree]]:
    """Yields the first example's number, how many there are, and a batch of them, padded."""
    if isinstance(examples, tuple):
        num = _num_stacked(examples)
        batch_size = min(batch_size, num)
        for start in range(0, num, batch_size):
            rows = np.minimum(np.arange(start, start + batch_size), num - 1)
            batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], examples)
            yield start, min(batch_size, num - start), batch
        return
    if hasattr(examples, "shape") or not isinstance(examples, Iterable):
        raise TypeError(
            "evaluate: examples must be a tuple (xs, *rest) of arrays, or an iterable of one tuple "
            f"(x, *rest) for each example; got {type(examples).__name__}. For xs alone type (xs,)."
        )
    iterator, start, expected = iter(examples), 0, None
    while chunk := list(itertools.islice(iterator, batch_size)):
        for i, example in enumerate(chunk, start):
            if not isinstance(example, tuple) or not example:
                raise TypeError(
                    "evaluate: each of examples must be a tuple (x, *rest), for x alone (x,); "
                    f"example {i} is {example!r:.80}."
                )
            shapes = _shapes(example)
            expected = expected or shapes
            if shapes != expected:
                raise ValueError(
                    "evaluate: examples must be alike, to be judged by one program; the first has "
                    f"{expected[1]}, example {i} has {shapes[1]}."
                )
        if start == 0:
            batch_size = len(chunk)
        padded = chunk + chunk[-1:] * (batch_size - len(chunk))
        yield start, len(chunk), jax.tree.map(_stack, *padded)
        start += len(chunk)
    if start == 0:
        raise ValueError("evaluate: there are no examples.")


def _num_stacked(examples):
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(examples)]
    sizes = {shape[0] if shape else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            "evaluate: examples = (xs, *rest) must be arrays that share a leading axis of one or "
            f"more examples; got shapes {shapes!s:.200}."
        )
    return sizes.pop()


def _num_items(examples, batch_size, record):
    """How many batches are to be judged, counted for each explainer; None if not known."""
    if isinstance(examples, tuple):
        examples = jax.tree.leaves(examples)[0]
    if not hasattr(examples, "__len__"):
        return None
    num = len(examples)
    batches = [(start, min(batch_size, num - start)) for start in range(0, num, batch_size)]
    return sum(not record.holds(name, *batch) for name in record.scores for batch in batches)


def _shapes(example):
    leaves, structure = jax.tree.flatten(example)
    return structure, [f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}" for leaf in leaves]


def _stack(*leaves):
    return (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves)


def _with_bar(items, total):
    try:
        from tqdm import tqdm
    except ImportError:
        return items
    return tqdm(items, desc="evaluate", total=total, unit="batch")


def _check_functions(what, functions):
    is_dict = isinstance(functions, Mapping)
    if not is_dict or not all(isinstance(n, str) and callable(f) for n, f in functions.items()):
        raise TypeError(
            f"evaluate: {what} must be a dict of functions by name; got {functions!r:.200}."
        )


def _header(key, arrays, columns):
    return {
        "format": _FORMAT,
        "key": f"{jax.random.key_impl(key)} {jax.random.key_data(key).tolist()}",
        "params": _digest(map(_to_numpy, jax.tree.leaves(arrays))),
        "metrics": sorted(columns),
    }


def _fingerprint(program):
    """A digest of a traced program and its constants."""
    text = re.sub("0x[0-9a-f]+", "", str(program))  # addresses, which JAX 0.9 prints
    return _digest([np.array(text), *map(_to_numpy, _constants(program))])


def _constants(program):
    """The constants of a traced program and of the programs in it."""
    if isinstance(program, ClosedJaxpr):
        yield from program.consts
        program = program.jaxpr
    for equation in program.eqns:
        parts = jax.tree.leaves(equation.params, is_leaf=_is_program)
        for part in filter(_is_program, parts):
            yield from _constants(part)


def _is_program(part):
    return isinstance(part, (ClosedJaxpr, Jaxpr))


def _digest(arrays):
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _is_key(leaf):
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf):
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, jnp.result_type(leaf))  # the dtype that a program would be given


def _to_line(entry):
    return json.dumps(entry, allow_nan=False).encode() + b"\n"


def _to_list(scores):
    return [x if math.isfinite(x) else str(x) for x in scores.tolist()]


def _to_array(values):
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


def _compare(better, worse, scores, others, num_pairs):
    with np.errstate(invalid="ignore"):
        gaps = scores - others
    gap, stderr, num = _mean(gaps)
    if not stderr > 0:
        chance = math.nan if math.isnan(stderr) else float(gap == 0)
    else:
        # The two-sided tail of Student's t beyond gap / stderr.
        freedom = num - 1
        with jax.enable_x64(True):
            tail = betainc(freedom / 2, 0.5, freedom / (freedom + (gap / stderr) ** 2))
        chance = min(1.0, num_pairs * float(tail))
    return Comparison(better, worse, gap, stderr, chance, num, len(gaps) - num)


def _cell(estimate, num):
    count = f" (n = {estimate.num_samples})" if estimate.num_samples < num else ""
    return _plus_minus(estimate) + count


def _plus_minus(estimate):
    """The mean and its error, to two digits of the error."""
    mean, stderr, _ = estimate
    if not 1e-4 < stderr < math.inf or abs(mean) > 1e6:
        return f"{mean:.4g} ± {stderr:.2g}"
    digits = max(0, 1 - math.floor(math.log10(stderr)))
    return f"{mean:.{digits}f} ± {stderr:.{digits}f}"
