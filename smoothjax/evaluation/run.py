"""Judging explainers: all metrics of all explainers on all examples, in one resumable run.

This is a driver, not a transform: unlike the functions that it judges, it runs eagerly, compiles
what it is given with `jax.jit`, and may write a file.
"""

import contextlib
import inspect
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax._checks import check_integer, require
from smoothjax._progress import with_bar
from smoothjax._transform import is_stochastic, keyed, name_of, noted
from smoothjax._trees import combine, is_array, partition
from smoothjax._typing import Explainer, Metric, PyTree
from smoothjax.evaluation._batches import batches, num_examples
from smoothjax.evaluation.record import Record, fingerprint, header_of, is_key
from smoothjax.evaluation.result import Evaluation

NONE: Mapping[str, Any] = MappingProxyType({})
_HOW_TO_WRAP = (
    "evaluate calls metric {0!r} with (params, x, attribution, *rest), and annotations by keyword. "
    "Wrap what takes maps alone: lambda params, x, attribution, *rest: {1}(attribution), or "
    "lambda params, x, attribution, *rest, mask: {1}(attribution, mask)."
)


@noted
def evaluate(
    explainers: Mapping[str, Explainer],
    *,
    params: PyTree,
    examples: tuple | Iterable[tuple],
    key: jax.Array,
    metrics: Mapping[str, Metric] = NONE,
    explainer_metrics: Mapping[str, Callable[[Explainer], Metric]] = NONE,
    annotations: Mapping[str, Any] = NONE,
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
      params: the weights, a pytree. Leaves that are no arrays are left as they are.
      examples: a tuple `(xs, *rest)` of arrays with a leading axis of examples, such as
        `(xs, labels)`; or an iterable but a tuple, of any length, of one tuple `(x, *rest)` for
        each example. All of `rest` goes to every explainer and metric.
      key: a typed PRNG key; unused if nothing is stochastic.
      metrics: functions `metric(params, x, attribution, *rest)` of one example that return a real
        scalar, or stochastic ones, by name. To adapt a function of less, leave out what it does not
        take: `lambda params, x, attribution, *rest: gini(attribution)`.
      explainer_metrics: functions that take an explainer and return a function `(params, x, *rest)`
        of one example to a real scalar, or a stochastic one, by name, such as
        `lambda explain: max_sensitivity(explain, radius=0.1)`.
      annotations: what metrics judge against and explainers must not see, such as masks, by name:
        arrays with a leading axis of examples, or iterables if the examples are one. A metric of
        either kind gets those that it has a parameter for, by keyword:
        `lambda params, x, attribution, *rest, mask: relevance_mass_accuracy(attribution, mask)`.
      batch_size: how many examples are judged at once; memory and speed only. The memory is that of
        `batch_size` times the metric's `chunk_size` times the explainer's `chunk_size` at once.
      progress: whether to show a bar with the time left (for an iterable without a length: the time
        taken). It needs tqdm; if that is not installed, none is shown.
      path: if given, a file that gets each batch of scores as soon as it is known, as lines of
        JSON. If it exists, what it holds is not computed again; explainers and examples may be
        added. It must have been written with the same key, jax_threefry_partitionable, params,
        metric names, examples and annotations, and by the same traced programs: a changed setting
        does not go unnoticed (what a callback does is not seen), nor a version of JAX that traces
        otherwise.

    Returns:
      An `Evaluation`: scores, table, rankings, JSON, pandas frame, and plot.

    Raises:
      TypeError, ValueError: before anything is compiled, for arguments that are not as above, a
        metric that does not return a scalar, or a file that holds something else; and for a later
        example that is unlike the first, or not the one that the file has scores of.

    Cost: that of all explainers and metrics, in the memory of a batch. With `path`, hashing the
    params and the examples.

    >>> score = lambda params, x: jnp.sum(params * jnp.sin(x))
    >>> explainers = {"saliency": sj.saliency(score), "smooth": sj.smoothgrad(sj.saliency(score))}
    >>> error = sj.metrics.completeness_error(score)
    >>> metrics = {"completeness": lambda *args: abs(error(*args))}
    >>> xs = jax.random.normal(jax.random.key(1), (20, 3))
    >>> result = sj.evaluate(
    ...     explainers, params=jnp.ones(3), examples=(xs,), key=jax.random.key(0), metrics=metrics
    ... )
    >>> print(result.scores["smooth"]["completeness"].shape)
    (20,)
    >>> best, *_ = result.ranking("completeness", lower_is_better=True).estimates
    """
    _check_settings(explainers, metrics, explainer_metrics)
    one_key = is_key(key) and not key.shape
    require(one_key, f"key must be one like jax.random.key(0); got {key!r:.80}.", TypeError)
    batch_size = check_integer(batch_size, "batch_size", least=1)
    arrays, program = _programs(params)
    made = {
        name: {metric: make(explain) for metric, make in explainer_metrics.items()}
        for name, explain in explainers.items()
    }
    _check_annotations(annotations, explainers, [metrics, *made.values()])
    judge = program(_judge(metrics)) if metrics else None
    judged = {
        name: _Judged(
            program(_attribute(explain)),
            judge,
            program(_judge(made[name])) if explainer_metrics else None,
        )
        for name, explain in explainers.items()
    }

    all_batches = batches(examples, annotations, batch_size)
    first = next(all_batches)
    sample = jax.tree.map(lambda leaf: leaf[0], (first.example, first.annotations))
    for name, programs in judged.items():
        programs.check(name, arrays, key, np.int32(0), *sample)
    record = Record(explainers, [*metrics, *explainer_metrics])
    if path is not None:
        # Of a batch of one, the program that runs does not depend on the batch size.
        one = jax.tree.map(lambda leaf: leaf[:1], (first.example, first.annotations))
        fingerprints = {
            name: programs.fingerprint(arrays, key, np.zeros(1, np.int32), *one)
            for name, programs in judged.items()
        }
        record.open(pathlib.Path(path), header_of(key, arrays, record.columns), fingerprints)

    def work():
        for batch in itertools.chain([first], all_batches):
            record.check_examples(batch)
            for name in explainers:
                if not record.holds(name, batch.start, batch.size):
                    yield name, batch

    total = _num_items(num_examples(examples), batch_size, record)
    items = with_bar(work(), "evaluate", "batch", show=progress, total=total)
    with contextlib.closing(record):
        for name, batch in items:
            length = len(jax.tree.leaves(batch.example)[0])
            indices = batch.start + np.arange(length, dtype=np.int32)
            arguments = arrays, key, indices, batch.example, batch.annotations
            scores = judged[name].scores(*arguments)
            found = {m: np.asarray(s, float)[: batch.size] for m, s in scores.items()}
            record.add(name, batch.start, found)
    return Evaluation(record.arrays())


class _Program(NamedTuple):
    """A function `(arrays, key, index, example, annotations, ...)`, jitted, and of a batch.

    The first is traced to check it, the second run; it finds the trace of the first again, for a
    network takes seconds to trace.
    """

    of_example: Any
    of_batch: Any


class _Judged(NamedTuple):
    """The programs of one explainer: its attribution, the metrics of that, and those of itself.

    Where there are no metrics of a kind there is no program for them.
    """

    attribute: _Program
    judge: _Program | None
    judge_explainer: _Program | None

    def traced(self, form, *args):
        """The programs, traced: `form` is the name of one of the fields of `_Program`."""
        attribution = getattr(self.attribute, form).trace(*args)
        found = [attribution]
        if self.judge:
            found.append(getattr(self.judge, form).trace(*args, attribution.out_info))
        if self.judge_explainer:
            found.append(getattr(self.judge_explainer, form).trace(*args))
        return found

    def check(self, name, *sample):
        """Raises unless all metrics return one number for an example."""
        try:
            _, *judges = self.traced("of_example", *sample)
        except Exception as error:
            error.add_note(f"evaluate was tracing the explainer {name!r} and its metrics.")
            raise
        for judge in judges:
            _check_scores(judge.out_info, name)

    def fingerprint(self, *batch):
        """What tells these programs, and their constants, from others."""
        return " ".join(fingerprint(one.jaxpr) for one in self.traced("of_batch", *batch))

    def scores(self, *batch):
        """The scores of a batch; its attributions are not computed if nothing judges them."""
        found = {}
        if self.judge:
            found |= self.judge.of_batch(*batch, self.attribute.of_batch(*batch))
        if self.judge_explainer:
            found |= self.judge_explainer.of_batch(*batch)
        return found


def _programs(params):
    """The arrays of params, and what makes a `_Program` of a function of params."""
    arrays, others = partition(params, is_array)

    def program(body):
        @jax.jit
        def of_example(arrays, *args):
            return body(combine(arrays, others), *args)

        @jax.jit
        def of_batch(arrays, key, *args):
            return jax.vmap(of_example, (None, None, *[0] * len(args)))(arrays, key, *args)

        return _Program(of_example, of_batch)

    return arrays, program


def _attribute(explain):
    """The function of one example to its attribution."""
    explain = keyed(explain)

    def attribute(params, key, index, example, annotations):
        del annotations
        return explain(_keys(key, index)[0], params, *example)

    return attribute


def _judge(metrics):
    """The function of one example, and its attribution if that is judged, to its scores."""
    # Sorted, for the program not to depend on their order.
    metrics = {name: (f, keyed(f), _keywords(f)) for name, f in sorted(metrics.items())}

    def judge(params, key, index, example, annotations, *attribution):
        metric_key = _keys(key, index)[1]
        x, *rest = example
        scores = {}
        for name, (metric, call, keywords) in metrics.items():
            chosen = {note: value for note, value in annotations.items() if note in keywords}
            args = (params, x, *attribution, *rest)
            try:
                scores[name] = call(metric_key, *args, **chosen)
            except TypeError as error:
                if attribution and not _takes(
                    metric, (metric_key,) * is_stochastic(metric) + args, chosen
                ):
                    error.add_note(_HOW_TO_WRAP.format(name, name_of(metric)))
                raise
        return scores

    return judge


def _keys(key, index):
    return jax.random.split(jax.random.fold_in(key, index))


def _takes(metric, args, keywords):
    """Whether a metric can be called with these; True if that is not known."""
    try:
        inspect.signature(metric).bind(*args, **keywords)
    except TypeError:
        return False
    except ValueError:  # some builtins have no signature
        pass
    return True


def _keywords(metric):
    """The parameters of a metric that can be given by keyword, each with whether it must be."""
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return {}
    return {
        p.name: p.kind is p.KEYWORD_ONLY and p.default is p.empty
        for p in parameters
        if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    }


def _num_items(num, batch_size, record):
    """How many batches are to be judged, counted for each explainer; None if not known."""
    if num is None:
        return None
    all_batches = [(start, min(batch_size, num - start)) for start in range(0, num, batch_size)]
    return sum(not record.holds(name, *batch) for name in record.scores for batch in all_batches)


def _check_settings(explainers, metrics, explainer_metrics):
    for what, functions in (
        ("explainers", explainers),
        ("metrics", metrics),
        ("explainer_metrics", explainer_metrics),
    ):
        is_dict = isinstance(functions, Mapping) and all(map(callable, functions.values()))
        require(is_dict, f"{what} must be functions by name; got {functions!r:.200}.", TypeError)
    require(explainers and (metrics or explainer_metrics), "there is no explainer, or no metric.")
    both = sorted(set(metrics) & set(explainer_metrics))
    require(not both, f"{both} name both metrics and explainer_metrics; rename one.")


def _check_annotations(annotations, explainers, rows):
    """Raises unless metrics want each annotation, and get all they must, and no explainer any."""
    is_dict = isinstance(annotations, Mapping)
    require(is_dict, f"annotations must be arrays by name; got {annotations!r:.200}.", TypeError)
    wanted = [(name, _keywords(metric)) for row in rows for name, metric in row.items()]
    unused = sorted(set(annotations).difference(*(known for _, known in wanted)))
    require(not unused, f"no metric has a parameter for the annotations {unused}.")
    for name, known in wanted:
        missing = [word for word, needed in known.items() if needed and word not in annotations]
        require(not missing, f"metric {name!r} needs the annotations {missing}.")
    for name, explain in explainers.items():
        # A metric made of it would pass them on.
        seen = sorted(set(annotations) & set(_keywords(explain)))
        require(not seen, f"explainer {name!r} would see the annotations {seen}; rename them.")


def _check_scores(returned, name):
    for metric, got in returned.items():
        dtype: Any = getattr(got, "dtype", None)
        shape = getattr(got, "shape", None)
        if shape != () or not jnp.isdtype(dtype, ("bool", "integral", "real floating")):
            raise TypeError(
                f"metric {metric!r} of {name!r} must return one real number, as the area(metric) "
                f"of a curve is; got {got!r:.200}."
            )
