"""The scores so far of an evaluation, and the file that keeps them between runs."""

import hashlib
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

from smoothjax.evaluation.result import to_array, to_list

_FORMAT = "smoothjax.evaluate, version 2"


class Record:
    """The scores so far, by explainer and example, and the file of them, if there is one."""

    def __init__(self, explainers, columns):
        """Starts with no scores; columns are the names of the metrics."""
        self.columns = columns
        self.scores = {name: {} for name in explainers}
        self.num_examples = 0
        self.digests = {}
        self.file: Any = None

    def open(self, path, header, programs):
        """Takes what a file holds, and writes to it from now on; `programs` are fingerprints."""
        self.path, self.programs = path, programs
        data = path.read_bytes() if path.exists() else b""
        # A line without its end was being written when a run was killed.
        kept = data[: data.rfind(b"\n") + 1]
        if kept:
            self._read(kept.splitlines(), header)
        elif not _to_line(header).startswith(data):
            raise ValueError(f"{path} is no file of scores; name another.")
        self.file = path.open("ab")
        self.file.truncate(len(kept))
        if not kept:
            self._write(header)

    def _read(self, lines, header):
        try:
            found, *entries = map(json.loads, lines)
            if found["format"] != header["format"]:
                raise ValueError(found["format"])
            found = {field: found[field] for field in header}
            entries = [_parse(entry, found["metrics"]) for entry in entries]
        except (AttributeError, KeyError, TypeError, ValueError):
            raise ValueError(
                f"{self.path} is no file of scores, or a damaged one; name another."
            ) from None
        for field, value in header.items():
            if found[field] != value:
                raise self._mismatch(f"other {field}, {found[field]} instead of {value}")
        for name, program, start, digests, scores in entries:
            if name in self.programs and program != self.programs[name]:
                raise self._mismatch(
                    f"another program called {name!r}: a setting of it or of a metric, the shape "
                    "of an example, or JAX's version has changed"
                )
            self.digests.update(enumerate(digests, start))
            if name in self.scores:
                self._take(name, start, scores)

    def check_examples(self, batch):
        """Raises unless these are the examples and annotations that the file has scores of."""
        self.num_examples = batch.start + batch.size
        if self.file is None:
            return
        leaves = list(map(_to_numpy, jax.tree.leaves((batch.example, batch.annotations))))
        for row in range(batch.size):
            digest = _digest([leaf[row] for leaf in leaves])
            if self.digests.setdefault(batch.start + row, digest) != digest:
                raise self._mismatch(f"another example {batch.start + row}, or its annotations")

    def _mismatch(self, what):
        return ValueError(
            f"{self.path} holds scores of {what}. Name another file, or delete this one."
        )

    def holds(self, name, start, size):
        """Returns whether the scores of an explainer are known for these examples."""
        return all(i in self.scores[name] for i in range(start, start + size))

    def add(self, name, start, scores):
        """Takes the scores of an explainer for a batch, and writes them."""
        num = self._take(name, start, scores)
        if self.file is not None:
            self._write(
                {
                    "explainer": name,
                    "program": self.programs[name],
                    "start": start,
                    "examples": [self.digests[i] for i in range(start, start + num)],
                    "scores": {metric: to_list(values) for metric, values in scores.items()},
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
        """Returns the scores as `Evaluation` has them."""
        tables = {
            name: np.array([rows[i] for i in range(self.num_examples)], float)
            for name, rows in self.scores.items()
        }
        return {n: dict(zip(self.columns, t.T.copy(), strict=True)) for n, t in tables.items()}

    def close(self):
        """Closes the file, if there is one."""
        if self.file is not None:
            self.file.close()


def header_of(key, arrays, columns):
    """What a file begins with, and must begin with to be gone on from."""
    config: Any = jax.config  # whose attributes no type checker knows
    return {
        "format": _FORMAT,
        "key": f"{jax.random.key_impl(key)} {jax.random.key_data(key).tolist()}",
        "jax_threefry_partitionable": config.jax_threefry_partitionable,
        "params": _digest(map(_to_numpy, jax.tree.leaves(arrays))),
        "metrics": sorted(columns),
    }


def _parse(entry, metrics):
    """What a line of a file holds, or raises some error."""
    name, start, digests = entry["explainer"], entry["start"], entry["examples"]
    scores = {metric: to_array(values) for metric, values in entry["scores"].items()}
    fits = sorted(scores) == metrics and {len(digests)} == {len(s) for s in scores.values()}
    if not (fits and isinstance(name, str) and isinstance(start, int)):
        raise ValueError(entry)
    return name, entry["program"], start, digests, scores


def fingerprint(program):
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


def is_key(leaf):
    """Whether a leaf is an array of typed keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(leaf):
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf, jnp.result_type(leaf))  # the dtype that a program would be given


def _to_line(entry):
    return json.dumps(entry, allow_nan=False).encode() + b"\n"
