"""Judging explainers: all metrics of all explainers on all examples, in one resumable run.

This is a driver, not a transform: unlike the functions that it judges, it runs eagerly, compiles
what it is given with `jax.jit`, and may write a file.
"""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from smoothjax.evaluation.record import Record, fingerprint, header_of, is_key
from smoothjax.evaluation.result import Evaluation
from smoothjax._checks import check_integer
from smoothjax._transform import keyed
from smoothjax._typing import Explainer

PyTree = Any
Metric = Callable[..., Any]


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
        `(xs, labels)`; or an iterable but a tuple, of any length, of one tuple `(x, *rest)` for
        each example.
        All of `rest` goes to every explainer and metric.
      key: a typed PRNG key; unused if nothing is stochastic.
      batch_size: how many examples are judged at once; memory and speed only. The memory is that of
        `batch_size` times the metric's `chunk_size` times the explainer's `chunk_size` at once.
      progress: whether to show a bar with the time left (for an iterable without a length: the time
        taken). It needs tqdm; if that is not installed, none is shown.
      path: if given, a file that gets each batch of scores as soon as it is known, as lines of
        JSON. If it exists, what it holds is not computed again; explainers and examples may be
        added. It must have been written with the same key, jax_threefry_partitionable, params,
        metric names and examples, and by the same traced programs: a changed setting does not go
        unnoticed (what a callback does is not seen), nor a version of JAX that traces otherwise.

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
    if not is_key(key) or key.shape:
        raise TypeError(f"evaluate: key must be one like jax.random.key(0); got {key!r:.80}.")
    check_integer(batch_size, "evaluate: batch_size", least=1)

    arrays, programs = _split(params)
    batches = _batches(examples, batch_size)
    first = next(batches)
    sample = (arrays, key, np.int32(0), jax.tree.map(lambda leaf: leaf[0], first[2]))
    # The batch of one that a file knows programs by: what runs, but whatever the batch size is.
    sample_batch = (
        arrays,
        key,
        np.zeros(1, np.int32),
        jax.tree.map(lambda leaf: leaf[:1], first[2]),
    )
    judge, judge_batch = programs(_judge(metrics))
    batch_programs, fingerprints = {}, {}
    for name, explain in explainers.items():
        made = {metric: make(explain) for metric, make in explainer_metrics.items()}
        _check_functions(f"what explainer_metrics make of {name!r}", made)
        attribute, attribute_batch = programs(_attribute(explain))
        judge_explainer, judge_explainer_batch = programs(_judge(made))
        batch_programs[name] = attribute_batch, judge_explainer_batch
        try:
            attributed = attribute.trace(*sample).out_info
            judged = judge.trace(*sample, attributed), judge_explainer.trace(*sample)
        except Exception as error:
            error.add_note(f"evaluate was tracing the explainer {name!r} and its metrics.")
            raise
        for traced in judged:
            _check_scores(traced.out_info, name)
        if path is not None:
            traced = attribute_batch.trace(*sample_batch)
            traced = (
                traced,
                judge_batch.trace(*sample_batch, traced.out_info),
                judge_explainer_batch.trace(*sample_batch),
            )
            fingerprints[name] = " ".join(fingerprint(t.jaxpr) for t in traced)

    record = Record(explainers, columns)
    if path is not None:
        record.open(pathlib.Path(path), header_of(key, arrays, columns), fingerprints)

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


def _batches(examples, batch_size) -> Iterator[tuple[int, int, PyTree]]:
    """Yields the first example's number, how many there are, and a batch of them, padded."""
    if isinstance(examples, tuple):
        if examples and type(examples[0]) is tuple:
            raise TypeError(
                "evaluate: a tuple of examples is read as (xs, *rest), arrays with a leading axis "
                "of examples, and its first element is a tuple. For one tuple (x, *rest) for each "
                "example type list(examples)."
            )
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
