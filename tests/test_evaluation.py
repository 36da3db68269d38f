"""evaluate, against plain loops over the examples; its statistics, against scipy's."""

import functools
import json
import math
import os
import pathlib
import subprocess
import sys

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but
from scipy import stats

import smoothjax as sj
from smoothjax._shown import plus_minus
from smoothjax.evaluation import Evaluation
from smoothjax.evaluation._batches import Batch
from smoothjax.evaluation.record import Record, header_of
from smoothjax.reductions import Estimate

KEY = jax.random.key(5)
PARAMS = jnp.array([0.5, -1.0, 2.0])
XS = jnp.asarray(np.random.default_rng(1).normal(size=(7, 3)))
LABELS = jnp.arange(7) % 3


def score(params, x, label):
    return jnp.sum(params * jnp.sin(x)) + x[label] ** 2


gradient = sj.saliency(score)


def judged(explainers, metrics, explainer_metrics, params, examples, key, **settings):
    return sj.evaluate(
        explainers,
        params=params,
        examples=examples,
        key=key,
        metrics=metrics,
        explainer_metrics=explainer_metrics,
        **settings,
    )


@sj.stochastic
def noisy(key, params, x, label):
    return gradient(params, x + 0.3 * jax.random.normal(key, x.shape), label)


def total(params, x, attribution, label):
    return jnp.sum(attribution) + attribution[label] * x[0]


@sj.stochastic
def blurred(key, params, x, attribution, label):
    return jnp.sum(attribution * jax.random.normal(key, x.shape))


def gap(explain):
    """An explainer metric: how far two attributions of nearby inputs are apart."""
    inner = explain if sj.is_stochastic(explain) else lambda key, *args: explain(*args)

    @sj.stochastic
    def metric(key, params, x, label):
        near = x + jax.random.normal(key, x.shape)
        return jnp.sum(inner(key, params, x, label) - inner(key, params, near, label))

    return metric


EXPLAINERS = {"gradient": gradient, "noisy": noisy}
METRICS = {"total": total, "blurred": blurred}


@functools.cache
def expected():
    """What a loop over the examples gives, without evaluate."""
    takes_key = sj.is_stochastic

    @functools.partial(jax.jit, static_argnums=0)
    def of_example(explain, index, x, label):
        keys = jax.random.split(jax.random.fold_in(KEY, index))
        attribution = explain(*([keys[0]] if takes_key(explain) else []), PARAMS, x, label)
        return {
            "total": total(PARAMS, x, attribution, label),
            "blurred": blurred(keys[1], PARAMS, x, attribution, label),
            "gap": gap(explain)(keys[1], PARAMS, x, label),
        }

    return {
        name: [of_example(explain, i, XS[i], LABELS[i]) for i in range(len(XS))]
        for name, explain in EXPLAINERS.items()
    }


def check_scores(
    result, explainers=("gradient", "noisy"), metrics=("total", "blurred", "gap"), n=7
):
    assert list(result.scores) == list(explainers)
    for name, row in result.scores.items():
        assert list(row) == list(metrics)
        for metric, scores in row.items():
            assert scores.dtype == np.float64
            want = [scores[metric] for scores in expected()[name][:n]]
            np.testing.assert_allclose(scores, want, rtol=2e-5, atol=1e-6)


def run(explainers=EXPLAINERS, metrics=METRICS, examples=(XS, LABELS), key=KEY, **settings):
    wholes = settings.pop("explainer_metrics", {"gap": gap})
    params = settings.pop("params", PARAMS)
    settings = {"batch_size": 3, "progress": False, **settings}
    return judged(explainers, metrics, wholes, params, examples, key, **settings)


def one_by_one(num=7):
    for i in range(num):
        yield np.asarray(XS[i]), int(LABELS[i])


@pytest.mark.parametrize("batch_size", slow_but([1, 3, 100], 3))
def test_scores_are_those_of_a_loop_over_examples(batch_size):
    check_scores(run(batch_size=batch_size))


@pytest.mark.parametrize(
    ("make", "batch_size"),
    [(one_by_one, 3), (lambda: list(zip(XS, LABELS, strict=True)), 100)],
)
@pytest.mark.slow
def test_examples_may_come_one_by_one(make, batch_size):
    check_scores(run(examples=make(), batch_size=batch_size))


@pytest.mark.slow
def test_scores_do_not_depend_on_what_else_is_asked_for():
    alone = run({"noisy": noisy}, {"blurred": blurred}, explainer_metrics={})
    check_scores(alone, ["noisy"], ["blurred"])
    turned = run(dict(reversed(EXPLAINERS.items())), dict(reversed(METRICS.items())))
    check_scores(turned, ["noisy", "gradient"], ["blurred", "total", "gap"])
    check_scores(run(metrics={}), metrics=["gap"])


def test_explainers_are_given_the_same_draws_and_metrics_others():
    @sj.stochastic
    def draw(key, params, x):
        return jax.random.uniform(key)

    @sj.stochastic
    def another(key, params, x, attribution):
        return jax.random.uniform(key)

    metrics = {"draw": lambda params, x, attribution: attribution, "another": another}
    scores = judged({"a": draw, "b": draw}, metrics, {}, None, (XS,), KEY, progress=False).scores
    np.testing.assert_array_equal(scores["a"]["draw"], scores["b"]["draw"])
    np.testing.assert_array_equal(scores["a"]["another"], scores["b"]["another"])
    draws = np.concatenate([scores["a"]["draw"], scores["a"]["another"]])
    assert len(set(draws.tolist())) == 14  # none twice: neither examples nor roles share them


def test_a_frozen_key_shares_the_draws():
    frozen = jax.jit(functools.partial(noisy, jax.random.key(3)))
    scores = run({"frozen": frozen}, {"total": total}, explainer_metrics={}).scores
    each = [total(PARAMS, x, frozen(PARAMS, x, y), y) for x, y in zip(XS, LABELS, strict=True)]
    np.testing.assert_allclose(scores["frozen"]["total"], each, rtol=1e-5)


class Counted:
    """An explainer that counts how often it is traced, and on what it is run."""

    def __init__(self, scale=1.0):
        self.traces, self.seen, self.scale = 0, [], scale

    def __call__(self, params, x):
        self.traces += 1
        jax.debug.callback(lambda x: self.seen.append(float(x)), x)
        return self.scale * x


def counted_run(explain, num, make=lambda num: (jnp.arange(float(num)),), **settings):
    metrics = {name: lambda params, x, a: a + 1 for name in ("one", "two", "three")}
    settings = {"batch_size": 3, "progress": False, **settings}
    explainers = explain if isinstance(explain, dict) else {"counted": explain}
    result = judged(explainers, metrics, {}, None, make(num), KEY, **settings)
    jax.effects_barrier()
    return result


@pytest.mark.parametrize(
    "make", [lambda n: (jnp.arange(float(n)),), lambda n: ((float(i),) for i in range(n))]
)
@pytest.mark.parametrize(("num", "runs"), [(3, 3), (6, 6), (7, 9), (2, 2)])
def test_each_attribution_is_computed_once_by_one_program(num, runs, make):
    explain = Counted()
    result = counted_run(explain, num, make)
    assert explain.traces == 1
    assert sorted(explain.seen)[:num] == list(range(num))
    assert len(explain.seen) == runs  # the last batch is padded with its last example
    for scores in result.scores["counted"].values():
        np.testing.assert_array_equal(scores, np.arange(num) + 1)


@pytest.mark.parametrize("num", [3, 6, 7])
def test_a_program_for_each_explainer_and_one_for_the_metrics(num, caplog):
    examples = (np.arange(float(num), dtype=np.float32),)
    explainers = {"a": lambda params, x: x, "b": lambda params, x: x + 1}
    traced = []
    metrics = {m: lambda params, x, a: (traced.append(1), jnp.sin(a))[1] for m in "mn"}
    with jax.log_compiles():
        judged(explainers, metrics, {}, None, examples, KEY, batch_size=3, progress=False)
    assert len(traced) == 2  # each of the two metrics once
    compiled = [m for m in caplog.messages if m.startswith("Finished XLA compilation")]
    assert len(compiled) == 3


def test_attributions_may_have_several_shapes():
    explainers = {"full": lambda params, x: x, "sum": lambda params, x: x.sum(keepdims=True)}
    metrics = {"size": lambda params, x, a: a.size * a[0]}
    scores = judged(explainers, metrics, {}, None, (XS,), KEY, progress=False).scores
    np.testing.assert_allclose(scores["full"]["size"], 3 * np.asarray(XS)[:, 0], rtol=1e-6)
    np.testing.assert_allclose(scores["sum"]["size"], np.asarray(XS).sum(1), rtol=1e-5, atol=1e-6)


# Annotations


def masked(params, x, attribution, label, *, mask):
    return jnp.sum(jnp.where(mask, attribution, 0))


def masked_gap(explain):
    @sj.stochastic
    def metric(key, params, x, label, *, mask):
        args = (key, params, x, label) if sj.is_stochastic(explain) else (params, x, label)
        return jnp.sum(jnp.where(mask, explain(*args), 0))

    return metric


MASKS = jnp.asarray(np.random.default_rng(2).uniform(size=(7, 3)) < 0.5)


@pytest.mark.parametrize("single", [False, True])
def test_annotations_reach_the_metrics_that_name_them_and_no_explainer(single):
    examples = list(zip(XS, LABELS, strict=True)) if single else (XS, LABELS)
    masks = iter(MASKS) if single else MASKS
    settings = {"explainer_metrics": {"masked gap": masked_gap}, "annotations": {"mask": masks}}
    scores = run({"gradient": gradient}, {"masked": masked, "total": total}, examples, **settings)
    row = scores.scores["gradient"]
    maps = np.stack([gradient(PARAMS, x, y) for x, y in zip(XS, LABELS, strict=True)])
    want = (maps * np.asarray(MASKS)).sum(1)
    np.testing.assert_allclose(row["masked"], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(row["masked gap"], want, rtol=1e-5, atol=1e-6)
    check_scores(run({"gradient": gradient}, {"total": total}, explainer_metrics={}),
                 ["gradient"], ["total"])  # fmt: skip
    np.testing.assert_allclose(row["total"], [s["total"] for s in expected()["gradient"]], 2e-5)


def test_a_file_knows_its_annotations(tmp_path):
    def with_masks(masks):
        settings = {"explainer_metrics": {}, "annotations": {"mask": masks}}
        return run({"gradient": gradient}, {"masked": masked}, path=tmp_path / "f", **settings)

    first = with_masks(MASKS).scores["gradient"]["masked"]
    np.testing.assert_array_equal(with_masks(MASKS).scores["gradient"]["masked"], first)
    with pytest.raises(ValueError, match="another example 5, or its annotations"):
        with_masks(MASKS.at[5, 0].set(~MASKS[5, 0]))


# What a file is for


def test_an_interrupted_run_goes_on_where_it_was(tmp_path):
    path = tmp_path / "scores.jsonl"
    whole, first, second = Counted(), Counted(), Counted()

    def interrupted(num):
        yield from ((float(i),) for i in range(5))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counted_run(first, 10, interrupted, path=path)
    assert len(path.read_text().splitlines()) == 2  # the header and a batch
    result = counted_run(second, 10, path=path)
    jax.effects_barrier()
    assert sorted(first.seen) == [0, 1, 2]
    assert sorted(set(second.seen)) == list(range(3, 10))
    want = counted_run(whole, 10, path=tmp_path / "whole.jsonl")
    np.testing.assert_array_equal(table(result), table(want))
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    again = Counted()
    np.testing.assert_array_equal(table(counted_run(again, 10, path=path)), table(want))
    assert again.seen == []


def test_a_failing_explainer_keeps_what_came_before(tmp_path):
    def fails(x):
        if x > 4 and not mended:
            raise RuntimeError("out of memory")
        return x

    def explain(params, x):
        return jax.pure_callback(
            fails, jax.ShapeDtypeStruct((), x.dtype), x, vmap_method="sequential"
        )

    mended, path = False, tmp_path / "scores.jsonl"
    with pytest.raises(Exception, match="out of memory"):
        counted_run(explain, 9, path=path)
    assert len(path.read_text().splitlines()) == 2
    mended = True
    np.testing.assert_array_equal(table(counted_run(explain, 9, path=path))[0, 0], np.arange(9) + 1)


def test_the_file_gets_each_batch_as_soon_as_it_is_known(tmp_path):
    path, lines = tmp_path / "scores.jsonl", []

    def watched(num):
        for i in range(num):
            lines.append(len(path.read_text().splitlines()) if path.exists() else 0)
            yield (float(i),)

    counted_run(Counted(), 8, watched, path=path)
    # Nothing when the first batch is read, then the header, and a line for each batch before.
    assert lines == [0, 0, 0, 2, 2, 2, 3, 3]


def table(result):
    return np.array([list(row.values()) for row in result.scores.values()])


def test_a_file_cut_at_any_byte_is_gone_on_with(tmp_path):
    """By the record alone: what is left of the cut line goes, and the batch is written again."""
    path = tmp_path / "scores.jsonl"
    rows = [(0, np.array([0.1, 1 / 3])), (2, np.array([np.nan]))]
    header = header_of(KEY, {"w": PARAMS}, ["m"])

    def write():
        record = Record({"e": None}, ["m"])
        record.open(path, header, {"e": "print"})
        taken = [record.holds("e", start, len(scores)) for start, scores in rows]
        for held, (start, scores) in zip(taken, rows, strict=True):
            xs = np.arange(start, start + len(scores), dtype=np.float32) / 7
            record.check_examples(Batch(start, len(scores), (xs,), {}))
            if not held:
                record.add("e", start, {"m": scores})
        record.close()
        np.testing.assert_array_equal(record.arrays()["e"]["m"], [0.1, 1 / 3, np.nan])
        return taken

    assert write() == [False, False]
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 3
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        assert write() == [size >= end for end in ends[1:]]
        assert path.read_bytes() == whole


def test_a_cut_file_is_completed(tmp_path):
    path = tmp_path / "scores.jsonl"
    xs = (np.arange(3.0, dtype=np.float32) / 7,)

    def scores():
        args = {"e": lambda params, x: x}, {"m": lambda params, x, a: a}, {}, None, xs, KEY
        return judged(*args, batch_size=2, progress=False, path=path).scores["e"]["m"]

    want = scores()
    whole = path.read_bytes()
    for size in (len(whole) - 3, whole.index(b"\n") + 1):
        path.write_bytes(whole[:size])
        np.testing.assert_array_equal(scores(), want)
        assert path.read_bytes() == whole


def test_explainers_and_examples_may_be_added_and_the_batch_size_changed(tmp_path):
    path = tmp_path / "scores.jsonl"
    a, b, c = Counted(), Counted(2.0), Counted()
    counted_run({"a": a}, 6, path=path)
    result = counted_run({"b": b, "a": c}, 6, path=path)
    assert sorted(b.seen) == list(range(6))
    assert c.seen == []
    assert list(result.scores) == ["b", "a"]
    np.testing.assert_array_equal(result.scores["b"]["one"], 2 * np.arange(6) + 1)
    np.testing.assert_array_equal(result.scores["a"]["one"], np.arange(6) + 1)
    more, fewer = Counted(), Counted()
    result = counted_run({"a": more}, 9, path=path, batch_size=4)
    np.testing.assert_array_equal(result.scores["a"]["one"], np.arange(9) + 1)
    assert sorted(set(more.seen)) == [4, 5, 6, 7, 8]
    result = counted_run({"a": fewer}, 4, path=path)
    np.testing.assert_array_equal(result.scores["a"]["one"], np.arange(4) + 1)
    assert fewer.seen == []


def test_scores_that_are_no_numbers_survive_the_file(tmp_path):
    xs = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.1, 1e-30])
    for _ in range(2):
        result = judged(
            {"e": lambda params, x: x}, {"m": lambda params, x, a: a}, {}, None, (xs,), KEY,
            progress=False, path=tmp_path / "scores.jsonl",
        )  # fmt: skip
        np.testing.assert_array_equal(result.scores["e"]["m"], np.asarray(xs, float))
    for line in (tmp_path / "scores.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


CHANGES = {
    "key": {"key": jax.random.key(6)},
    "params": {"params": PARAMS + 1},
    "metrics": {"explainer_metrics": {}},
    "another program called 'noisy'": {
        "explainers": {"noisy": sj.stochastic(lambda key, *args: noisy(key, *args) * 1.01)}
    },
    "another program called 'gradient'": {"metrics": {**METRICS, "total": lambda *args: 1.0}},
    "another example 6": {"examples": (XS.at[6, 1].add(1e-6), LABELS)},
    "another example 1": {"examples": (XS, LABELS.at[1].set(0))},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path, what):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(file_of_a_run())
    with pytest.raises(ValueError, match=f"holds scores of (other )?{what}"):
        run(path=path, **CHANGES[what])
    assert path.read_bytes() == file_of_a_run()
    check_scores(run(path=path))


def test_the_order_of_names_does_not_matter_to_a_file(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(file_of_a_run())
    turned = run(dict(reversed(EXPLAINERS.items())), dict(reversed(METRICS.items())), path=path)
    check_scores(turned, ["noisy", "gradient"], ["blurred", "total", "gap"])
    assert path.read_bytes() == file_of_a_run()


@functools.cache
def file_of_a_run():
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "scores.jsonl"
        run(path=str(path))
        return path.read_bytes()


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_constant_that_changed_is_noticed_inside_jitted_functions_too(tmp_path, depth):
    def explainer(constant):
        def explain(params, x):
            return x + constant * 2

        for _ in range(depth):
            explain = jax.jit(explain)
        return lambda params, x: jax.lax.map(lambda x: explain(params, x), x[None])[0]

    metrics = {"m": lambda params, x, a: a}
    args = metrics, {}, None, (jnp.arange(3.0),), KEY
    path = tmp_path / "scores.jsonl"
    constants = [jnp.array(v) for v in (1.0, 1.0, 2.0)]
    first, same, other = ({"e": explainer(c)} for c in constants)
    judged(first, *args, progress=False, path=path)
    judged(same, *args, progress=False, path=path)
    with pytest.raises(ValueError, match="another program called 'e'"):
        judged(other, *args, progress=False, path=path)


def test_a_constant_of_the_batched_program_is_noticed(tmp_path):
    """A rule of custom_vmap is not in the program of one example, but is what runs."""

    def explainer(constant):
        @jax.custom_batching.custom_vmap
        def explain(x):
            return x

        @explain.def_vmap
        def rule(axis_size, in_batched, x):
            return x + constant, True

        return lambda params, x: explain(x)

    args = {"m": lambda params, x, a: a}, {}, None, (jnp.arange(3.0),), KEY
    settings = {"progress": False, "path": tmp_path / "scores.jsonl"}
    result = judged({"e": explainer(jnp.array(1.0))}, *args, **settings)
    assert result.scores["e"]["m"].tolist() == [1.0, 2.0, 3.0]
    judged({"e": explainer(jnp.array(1.0))}, *args, batch_size=2, **settings)
    with pytest.raises(ValueError, match="another program called 'e'"):
        judged({"e": explainer(jnp.array(2.0))}, *args, **settings)


def test_other_random_bits_are_noticed(tmp_path):
    path = tmp_path / "scores.jsonl"
    path.write_bytes(file_of_a_run())
    with (
        jax.threefry_partitionable(not jax.config.jax_threefry_partitionable),
        pytest.raises(ValueError, match="scores of other jax_threefry_partitionable, True instead"),
    ):
        run(path=path)


@pytest.mark.parametrize("content", [b"precious", b"precious\n", b'{"a": 1}\n', b"[]\n", b"\xff\n"])
def test_a_file_that_is_not_of_evaluate_is_left_alone(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no file of scores"):
        run(path=path)
    assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_refused(tmp_path):
    path = tmp_path / "scores.jsonl"
    lines = file_of_a_run().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2][:30] + b"\n", *lines[3:]]))
    with pytest.raises(ValueError, match="damaged"):
        run(path=path)


DAMAGE = {
    "explainer": [3, ["gradient"], None],
    "start": ["0", None, 1.5],
    "examples": [None, 3, []],
    "scores": [None, [], {}, {"total": [1.0]}, 3],
    "program": [],
}


def damaged_lines():
    header, line, *_ = file_of_a_run().splitlines()
    for field, values in DAMAGE.items():
        entry = json.loads(line)
        yield header, without(entry, field)
        for value in values:
            yield header, {**entry, field: value}
    scores = json.loads(line)["scores"]
    for values in ([*scores["gap"], 1.0], [None] * 3, ["x"] * 3, 3):
        yield header, {**json.loads(line), "scores": {**scores, "gap": values}}
    for field in json.loads(header):
        yield json.dumps(without(json.loads(header), field)).encode(), json.loads(line)
    for odd in ({}, 3, None, [], "text", [3]):
        yield header, odd
        yield json.dumps(odd).encode(), json.loads(line)


def without(entry, field):
    return {key: value for key, value in entry.items() if key != field}


def test_lines_that_are_json_but_no_scores_are_refused(tmp_path):
    path = tmp_path / "scores.jsonl"
    header = json.loads(file_of_a_run().splitlines()[0])
    path.write_bytes(file_of_a_run())
    undamaged = Record(EXPLAINERS, [*METRICS, "gap"])
    undamaged.open(path, header, {})
    undamaged.close()
    for first, line in damaged_lines():
        content = first + b"\n" + json.dumps(line).encode() + b"\n"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no file of scores, or a damaged one"):
            Record(EXPLAINERS, [*METRICS, "gap"]).open(path, header, {})
        assert path.read_bytes() == content


def odd_run(path):
    def custom(params, x):
        return jax.nn.relu(params * x)

    explainers = {
        "callback": lambda params, x: jax.pure_callback(_same, x, x, vmap_method="broadcast_all"),
        "custom": sj.smoothgrad(jax.grad(custom), 0.1, tolerance=0.5, num_samples=20),
        "frozen": functools.partial(sj.smoothgrad(custom, 0.1), jax.random.key(0)),
    }
    metrics = {"m": lambda params, x, a: a}
    xs = (np.arange(2.0, dtype=np.float32),)
    judged(explainers, metrics, {}, np.float32(1), xs, KEY, progress=False, path=path)


def _same(x):
    return x


@pytest.mark.slow
def test_another_process_goes_on_with_the_file(tmp_path):
    """The digests of the programs are the same there."""
    path = tmp_path / "scores.jsonl"
    code = f"import test_evaluation; test_evaluation.odd_run({str(path)!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    environment["PYTHONPATH"] = os.pathsep.join([str(pathlib.Path(__file__).parent), *sys.path])
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    before = path.read_bytes()
    assert before.count(b"\n") == 4
    odd_run(path)
    assert path.read_bytes() == before


# What evaluate takes


def test_params_may_hold_what_is_no_array():
    params = {"w": PARAMS, "f": jnp.sin, "n": 2, "none": None}

    def explain(params, x):
        assert params["none"] is None
        assert isinstance(params["w"], jax.core.Tracer)  # an argument of the program, no constant
        return params["f"](params["w"] * x) * params["n"]

    metrics = {"m": lambda params, x, a: jnp.sum(a)}
    result = judged({"e": explain}, metrics, {}, params, (XS,), KEY, progress=False)
    want = 2 * np.sin(np.asarray(PARAMS)[None] * np.asarray(XS)).sum(1)
    np.testing.assert_allclose(result.scores["e"]["m"], want, rtol=1e-5)


def test_examples_may_be_trees_and_hold_keys():
    keys = jax.random.split(KEY, 7)

    def explain(params, x, key):
        return x["a"] + jax.random.uniform(key)

    metrics = {"m": lambda params, x, a, key: jnp.sum(a)}
    want = [3 * jax.random.uniform(k) + x.sum() for k, x in zip(keys, XS, strict=True)]
    for examples in (({"a": XS}, keys), [({"a": x}, k) for x, k in zip(XS, keys, strict=True)]):
        result = judged({"e": explain}, metrics, {}, None, examples, KEY, progress=False)
        np.testing.assert_allclose(result.scores["e"]["m"], want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, bool, jnp.int32])
def test_scores_may_be_any_real_numbers(dtype):
    xs = jnp.array([0, 1, 1, 0])
    metrics = {"m": lambda params, x, a: a.astype(dtype)}
    result = judged({"e": lambda params, x: x}, metrics, {}, None, (xs,), KEY, progress=False)
    assert result.scores["e"]["m"].tolist() == [0.0, 1.0, 1.0, 0.0]


BAD = [
    ({"explainers": [gradient]}, TypeError, "explainers must be functions by name"),
    ({"explainers": {}}, ValueError, "there is no explainer, or no metric"),
    ({"explainers": {"a": 3}}, TypeError, "explainers must be functions by name"),
    ({"metrics": {"a": None}}, TypeError, "metrics must be functions by name"),
    ({"metrics": {}, "explainer_metrics": {}}, ValueError, "there is no explainer, or no metric"),
    ({"explainer_metrics": {"total": gap}}, ValueError, "'total'. name both"),
    (
        {"explainer_metrics": {"gap": lambda explain: 3}},
        TypeError,
        "evaluate was tracing the explainer 'gradient'",
    ),
    ({"metrics": {"m": lambda p, x, a, y: a}}, TypeError, r"metric 'm'.*'gradient'.*\(3,\)"),
    ({"metrics": {"m": lambda p, x, a, y: (1.0, 2.0)}}, TypeError, "metric 'm'.*one real number"),
    (
        {"metrics": {"m": lambda p, x, a, y: jax.lax.complex(a[0], a[0])}},
        TypeError,
        "metric 'm'.*complex",
    ),
    (
        {"metrics": {"m": sj.metrics.gini}},
        TypeError,
        r"(?s)but 4 were given.*metric 'm'.*Wrap.*lambda params, x, attribution, \*rest: gini\(",
    ),
    ({"explainer_metrics": {"m": lambda e: e}}, TypeError, "metric 'm' of .* must return one real"),
    ({"key": 0}, TypeError, r"key must be one like jax.random.key\(0\)"),
    ({"key": jax.random.split(KEY)}, TypeError, "key must be one"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"examples": (XS, LABELS[:6])}, ValueError, r"a leading axis of one length.*\(7, 3\), \(6,\)"),
    ({"examples": (XS[:0], LABELS[:0])}, ValueError, "at least 1"),
    ({"examples": (XS, 3)}, TypeError, "along a leading axis"),
    ({"examples": ()}, ValueError, "along a leading axis"),
    ({"examples": []}, ValueError, "no examples"),
    ({"examples": iter([])}, ValueError, "no examples"),
    ({"examples": XS}, TypeError, r"\(xs,\) for xs alone"),
    ({"examples": 3}, TypeError, "examples must be a tuple"),
    ({"examples": ((XS[0], XS[1]), (XS[2], XS[3]))}, TypeError, r"type list\(examples\)"),
    ({"examples": list(XS)}, TypeError, "one tuple .* for each example; example 0"),
    ({"examples": [(XS[0], 1), (XS[0, :2], 1)]}, ValueError, r"float\d\d\[2\]"),
    ({"examples": [(XS[0], 1), (XS[0], 1.0)]}, ValueError, "example 1 has"),
    ({"examples": [(XS[0], 1)] * 3 + [(XS[0],)]}, ValueError, "example 3 has"),
]


class _Foreign:
    """Stands for a tensor of another library."""

    __module__ = "torch"
    shape, dtype = (7, 3), "float32"

    def __len__(self):
        return 7


class _Loader:
    """Stands for a loader of batches of another library."""

    __module__ = "torch.utils.data"

    def __iter__(self):
        yield np.asarray(XS), np.asarray(LABELS)


def shown(params, x, label, *, mask=None):
    """An explainer with a mask of its own."""
    return gradient(params, x, label) if mask is None else mask * 1.0


BAD += [
    ({"examples": _Loader()}, TypeError, r"got a torch.utils.data._Loader.* for xs, ys in loader"),
    ({"examples": _Foreign()}, TypeError, r"got a torch._Foreign\. Type tensor.numpy\(\)"),
    (
        {
            "explainers": {"shown": shown},
            "metrics": {"m": lambda p, x, a, y, mask: 1.0},
            "explainer_metrics": {"s": lambda e: sj.metrics.max_sensitivity(e, radius=0.1)},
            "annotations": {"mask": XS},
        },
        ValueError,
        r"explainer 'shown' would see the annotations \['mask'\]",
    ),
    (
        {"metrics": {"m": lambda p, x, a, y, mask: 1.0}, "annotations": {"mask": list(XS)}},
        TypeError,
        "annotation 'mask' must be stacked: type np.stack",
    ),
    ({"examples": (_Foreign(), LABELS)}, TypeError, r"got a torch._Foreign. .*tensor.numpy\(\)"),
    ({"examples": [(XS[0], "cat")]}, TypeError, "got a str"),
    (
        {"examples": [[XS, LABELS]]},
        TypeError,
        r"Type \[tuple\(one\) for one.*for xs, ys in loader",
    ),
    ({"examples": (XS, [0, 1, 2, 0, 1, 2, 0])}, TypeError, r"list of numbers: type np.array"),
    (
        {"examples": ((XS, XS), LABELS)},
        TypeError,
        r"type list\(examples\); an x of several arrays is a list or a dict",
    ),
    ({"annotations": [XS]}, TypeError, "annotations must be arrays by name"),
    ({"annotations": {"mask": XS}}, ValueError, r"no metric has a parameter for .*'mask'"),
    (
        {"metrics": {"m": lambda p, x, a, y, *, mask: 1.0}},
        ValueError,
        r"metric 'm' needs the annotations \['mask'\]",
    ),
    (
        {"metrics": {"m": lambda p, x, a, y, mask: 1.0}, "annotations": {"mask": XS[:6]}},
        ValueError,
        "along a leading axis",
    ),
    (
        {
            "metrics": {"m": lambda p, x, a, y, mask: 1.0},
            "annotations": {"mask": XS[:2]},
            "examples": [(x, 0) for x in XS],
        },
        ValueError,
        r"there are 2 of \['mask'\], and more of other",
    ),
]


class _Vision(list):
    """Stands for a data set of torchvision, which may hold arrays."""

    __module__ = "torchvision.datasets"


def test_only_what_is_of_torch_itself_is_taken_for_its_loader():
    check_scores(run(examples=_Vision(zip(XS, LABELS, strict=True))))


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=f"(?s){message}.*in evaluate"):
        run(**{"explainers": {"gradient": gradient}, **arguments})


def test_errors_come_before_anything_runs(tmp_path):
    explain = Counted()
    metrics = {"good": lambda params, x, a: a, "bad": lambda params, x, a: a[None]}
    with pytest.raises(TypeError, match="'bad'"):
        judged({"e": explain}, metrics, {}, None, (jnp.arange(3.0),), KEY, path=tmp_path / "f")
    assert explain.seen == []
    assert list(tmp_path.iterdir()) == []


def test_an_error_says_which_explainer_was_traced():
    with pytest.raises(TypeError) as caught:
        run({"good": gradient, "short": lambda params: params})
    assert any("'short'" in note for note in caught.value.__notes__)


# Progress


class Bar:
    """tqdm, as far as evaluate needs it."""

    def __init__(self, items, total=None, **_):
        self.items, self.total, self.count = items, total, 0
        Bar.last = self

    def __iter__(self):
        for item in self.items:
            self.count += 1
            yield item


def test_a_bar_counts_what_is_left_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tqdm", type("Module", (), {"tqdm": Bar}))
    path = tmp_path / "scores.jsonl"
    counted_run({"a": Counted()}, 6, progress=True, path=path)
    assert (Bar.last.total, Bar.last.count) == (2, 2)
    counted_run({"a": Counted(), "b": Counted()}, 7, progress=True, path=path)
    assert (Bar.last.total, Bar.last.count) == (4, 4)  # of a the last batch, of b all three
    counted_run({"a": Counted()}, 7, lambda n: ((float(i),) for i in range(n)), progress=True)
    assert (Bar.last.total, Bar.last.count) == (None, 3)
    counted_run({"a": Counted()}, 7, lambda n: [(float(i),) for i in range(n)], progress=True)
    assert (Bar.last.total, Bar.last.count) == (3, 3)


def test_the_bar_is_tqdm(capsys):
    pytest.importorskip("tqdm")
    counted_run(Counted(), 7, progress=True)
    assert "3/3" in capsys.readouterr().err
    counted_run(Counted(), 7, progress=False)
    assert capsys.readouterr().err == ""


def test_without_tqdm_there_is_no_bar(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    result = counted_run(Counted(), 7, progress=True)
    np.testing.assert_array_equal(result.scores["counted"]["one"], np.arange(7) + 1)
    assert capsys.readouterr() == ("", "")


# What an Evaluation tells


def evaluation(**columns):
    """An Evaluation of one metric, "m"."""
    return Evaluation({name: {"m": np.array(scores, float)} for name, scores in columns.items()})


def test_summary_is_mean_and_standard_error_of_what_is_not_nan():
    values = [1.0, 4.0, math.nan, 2.5]
    mean, stderr, num = evaluation(a=values).summary()["a"]["m"]
    assert mean == pytest.approx(2.5)
    assert stderr == pytest.approx(stats.sem([1.0, 4.0, 2.5]))
    assert num == 3
    assert evaluation(a=[2.0]).summary()["a"]["m"][:1] == (2.0,)
    assert math.isnan(evaluation(a=[2.0]).summary()["a"]["m"].stderr)
    mean, stderr, num = evaluation(a=[math.nan]).summary()["a"]["m"]
    assert math.isnan(mean)
    assert math.isnan(stderr)
    assert num == 0
    assert evaluation(a=[1.0, math.inf]).summary()["a"]["m"].mean == math.inf


def test_the_table():
    scores = {
        "saliency": {"deletion": np.array([0.1, 0.2, 0.3]), "gini": np.array([5e-9, 6e-9, 7e-9])},
        "noisy": {"deletion": np.array([100, 200, math.nan]), "gini": np.array([1.0, 1.0, 1.0])},
    }
    assert str(Evaluation(scores)) == (
        "|          | deletion         | gini               |\n"
        "| -------- | ---------------- | ------------------ |\n"
        "| saliency | 0.200 ± 0.058    | 6.00e-09 ± 5.8e-10 |\n"
        "| noisy    | 150 ± 50 (n = 2) | 1 ± 0              |"
    )


@pytest.mark.parametrize(
    ("mean", "stderr", "shown"),
    [
        (123.4561, 5.8e-05, "123.456100 ± 0.000058"),
        (-123.4561, 5.8e-08, "-1.23456100000e+02 ± 5.8e-08"),
        (0.0, 5e-05, "0.000000 ± 0.000050"),
        (0.0, 5e-300, "0.0e+00 ± 5.0e-300"),
        (1e-12, 3e-9, "1e-12 ± 3.0e-09"),
        (1.0, 5e-324, "1.0000000000000000e+00 ± 4.9e-324"),
        (12345678.0, 31.0, "1.2345678e+07 ± 3.1e+01"),
        (3e5, 2e3, "300000 ± 2000"),
        (1.0, math.inf, "1 ± inf"),
        (math.inf, math.nan, "inf ± nan"),
        (2.0, math.nan, "2 ± nan"),
    ],
)
def test_an_error_is_shown_to_two_digits_and_its_mean_to_the_same_place(mean, stderr, shown):
    assert plus_minus(Estimate(mean, stderr, 3)) == shown


@pytest.mark.parametrize("num", [2, 5, 40, 5000])
def test_neighbours_are_compared_by_the_paired_t_test(num):
    rng = np.random.default_rng(num)
    a, b, c = rng.normal(size=(3, num)) + rng.normal(size=num) + np.array([[0.0], [0.3], [0.5]])
    ranking = evaluation(a=a, b=b, c=c).ranking("m", lower_is_better=True)
    columns = {"a": a, "b": b, "c": c}
    order = sorted(columns, key=lambda name: columns[name].mean())
    assert list(ranking.estimates) == order
    assert ranking.estimates[order[0]].mean == pytest.approx(columns[order[0]].mean())
    for i, test in enumerate(ranking.comparisons):
        assert (test.better, test.worse) == (order[i], order[i + 1])
        gaps = columns[order[i]] - columns[order[i + 1]]
        want = min(1, 3 * stats.ttest_rel(columns[order[i]], columns[order[i + 1]]).pvalue)
        np.testing.assert_allclose(test.p_value, want, rtol=1e-6)
        np.testing.assert_allclose(test.difference, gaps.mean())
        np.testing.assert_allclose(test.stderr, stats.sem(gaps))
        assert test.differ == (want < 0.05)
        assert (test.num_examples, test.num_dropped) == (num, 0)
    assert list(ranking.pairs) == [tuple(order[:2]), (order[0], order[2]), tuple(order[1:])]
    far = ranking.pairs[order[0], order[2]]
    want = min(1, 3 * stats.ttest_rel(columns[order[0]], columns[order[2]]).pvalue)
    np.testing.assert_allclose(far.p_value, want, rtol=1e-6)
    assert (far.better, far.worse) == (order[0], order[2])
    best_last = evaluation(a=a, b=b, c=c).ranking("m", lower_is_better=False)
    assert list(best_last.estimates) == order[::-1]
    np.testing.assert_allclose(best_last.comparisons[0].p_value, ranking.comparisons[1].p_value)
    np.testing.assert_allclose(
        best_last.comparisons[0].difference, -ranking.comparisons[1].difference
    )


def test_pairs_with_nan_are_dropped_and_counted():
    a = [1.0, 2.0, math.nan, 4.0, 5.5]
    b = [2.0, 2.5, 9.0, math.nan, 6.5]
    (test,) = evaluation(a=a, b=b).ranking("m", lower_is_better=True).comparisons
    want = stats.ttest_rel([1.0, 2.0, 5.5], [2.0, 2.5, 6.5]).pvalue
    assert test.p_value == pytest.approx(want)
    assert (test.num_examples, test.num_dropped) == (3, 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_difference_against_the_order_of_the_means_is_none(sign):
    """b is better on each example that it has a score on, but has none on the easy ones."""
    a = sign * np.array([5.0, 6.1, 7.2, 8.1, 0, 0, 0, 0])
    b = sign * np.array([4.0, 5.0, 6.0, 7.0, math.nan, math.nan, math.nan, math.nan])
    ranking = evaluation(a=a, b=b).ranking("m", lower_is_better=sign == 1)
    (test,) = ranking.comparisons
    assert (test.better, test.worse) == ("a", "b")
    assert test.p_value == pytest.approx(stats.ttest_rel(a[:4], b[:4]).pvalue)
    assert test.p_value < 0.05
    assert not test.agrees
    assert not test.differ
    line = str(ranking).splitlines()[-1]
    assert "the other way round on the shared examples (p = 0.00011, n = 4, 4 dropped)" in line
    swapped = evaluation(a=a[:4], b=b[:4]).ranking("m", lower_is_better=sign == 1)
    assert swapped.comparisons[0].differ


SINGLE = np.array([0.3, 0.7, 1.1, 2.3, 5.7, 7.9], np.float32)


@pytest.mark.parametrize(
    ("a", "b", "p_value"),
    [
        ([1, 2, 3], [1, 2, 3], 1.0),
        ([1, 2, 3], [2, 3, 4], 1 / 4),
        ([1, 2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7], 1 / 32),
        (SINGLE + np.float32(0.1), SINGLE, 1 / 32),  # the sum rounds, each to something else
        (SINGLE / 3 * 3, SINGLE, 1.0),
        ([0.1, 0.1], [0.2, 0.2], 1 / 2),
        ([math.nan, 1, 2], [5, 2, 3], 1 / 2),
        ([1], [2], math.nan),
        ([1, 2], [1, math.nan], math.nan),
        ([1, math.inf], [1, math.inf], math.nan),
        ([1, 2], [1, math.inf], math.nan),
    ],
)
def test_odd_pairs(a, b, p_value):
    (test,) = evaluation(a=a, b=b).ranking("m", lower_is_better=True).comparisons
    np.testing.assert_equal(test.p_value, p_value)
    assert test.differ == (p_value < 0.05)


def test_equal_differences_of_many_explainers_are_corrected_for_the_pairs():
    columns = {name: np.arange(8.0) + i for i, name in enumerate("abc")}
    tests = evaluation(**columns).ranking("m", lower_is_better=True).comparisons
    assert [test.p_value for test in tests] == [3 / 128] * 2


def test_the_p_value_is_that_of_chance():
    """Of explainers that do not differ, about one test in twenty says that they do."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 400, 10))
    tests = [
        evaluation(a=x, b=y).ranking("m", lower_is_better=True) for x, y in zip(a, b, strict=True)
    ]
    assert 8 <= sum(ranking.comparisons[0].differ for ranking in tests) <= 34


def test_the_ranking_is_printed():
    nan = math.nan
    result = evaluation(
        none=[nan] * 3, random=[5, 6, 7.0], best=[1, 2, nan], saliency=[5, 6.1, 6.8]
    )
    assert str(result.ranking("m", lower_is_better=True)) == (
        "m: lower is better; each is compared with the one above\n"
        " 1. best      1.50 ± 0.50\n"
        " 2. saliency  5.97 ± 0.52  differs (p = 0.047, n = 2, 1 dropped)\n"
        " 3. random    6.00 ± 0.58  not shown to differ (p = 1, n = 3)\n"
        " 4. none      nan ± nan    not shown to differ (p = nan, n = 0, 3 dropped)"
    )
    first = str(result.ranking("m", lower_is_better=False)).splitlines()
    assert first[0].startswith("m: higher is better")
    assert [line.split()[1] for line in first[1:]] == ["random", "saliency", "best", "none"]
    assert str(evaluation(a=[1.0, 3.0]).ranking("m", lower_is_better=True)).endswith(
        "1. a  2.0 ± 1.0"
    )


def test_a_notebook_shows_tables():
    """The bold 0.023 is of a constant difference of eight examples, among three pairs: 3 / 128."""
    steps = np.arange(8.0)
    result = evaluation(**{"a|b": steps, "c": steps + 1, "d": steps + np.tile([0.5, 2.5], 4)})
    ranking = result.ranking("m", lower_is_better=True)
    tests = ranking.pairs
    far, near = (f"{tests[name, 'd'].p_value:.2g}" for name in ("a|b", "c"))
    assert ranking.pairwise() == (
        "|         | mean        | 1         | 2    |\n"
        "| ------- | ----------- | --------- | ---- |\n"
        "| 1. a\\|b | 3.50 ± 0.87 |           |      |\n"
        "| 2. c    | 4.50 ± 0.87 | **0.023** |      |\n"
        f"| 3. d    | 5.0 ± 1.0   | **{far}** | {near} |"
    )
    shown = ranking._repr_markdown_()
    assert shown.startswith("m: lower is better.")
    assert shown.endswith("\n\n" + ranking.pairwise())
    assert result._repr_markdown_() == str(result)
    assert r"| a\|b | 3.50 ± 0.87 |" in str(result)


def test_a_pair_the_other_way_round_is_in_parentheses():
    nan = math.nan
    a = np.array([5.0, 6.1, 7.2, 8.1, 0, 0, 0, 0])
    b = np.array([4.0, 5.0, 6.0, 7.0, nan, nan, nan, nan])
    assert "(0.00011)" in evaluation(a=a, b=b).ranking("m", lower_is_better=True).pairwise()


def test_ranking_of_an_unknown_metric():
    with pytest.raises(ValueError, match=r"no metric 'deletion'; there are \['m'\]"):
        evaluation(a=[1.0]).ranking("deletion", lower_is_better=True)


def test_json_round_trip():
    values = [0.1, 1e-300, math.nan, math.inf, -math.inf, -0.0]
    scores = {
        "é": {"m": np.array(values), "k": np.arange(6.0)},
        "b": {"m": -np.array(values), "k": np.ones(6)},
    }
    text = Evaluation(scores).to_json()
    json.loads(text, parse_constant=pytest.fail)  # strict JSON
    back = Evaluation.from_json(text).scores
    assert list(back) == list(scores)
    for name, row in scores.items():
        assert list(back[name]) == list(row)
        for metric, column in row.items():
            assert back[name][metric].dtype == np.float64
            np.testing.assert_array_equal(back[name][metric], column)


def test_the_pandas_frame():
    pandas = pytest.importorskip("pandas")
    result = evaluation(b=[1.0, math.nan], a=[3.0, 4.0])
    frame = result.to_pandas()
    index = pandas.MultiIndex.from_product([["b", "a"], [0, 1]], names=["explainer", "example"])
    pandas.testing.assert_frame_equal(frame, pandas.DataFrame({"m": [1, math.nan, 3, 4]}, index))


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        evaluation(a=[1.0]).to_pandas()


def test_the_plot_shows_the_summary():
    pytest.importorskip("matplotlib")
    figure = evaluation(a=[1.0, 3.0], b=[5.0, 9.0]).plot()
    line, _, (bars,) = figure.axes[0].containers[0].lines
    np.testing.assert_allclose(line.get_xdata(), [2, 7])
    np.testing.assert_allclose([segment[:, 0] for segment in bars.get_segments()], [[1, 3], [5, 9]])
