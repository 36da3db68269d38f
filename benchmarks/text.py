"""Measures which words' scores are right: how fast similarity falls as the best ones are deleted.

    python -m benchmarks.text

For a hundred pairs of sentences that mean about the same, each method says which tokens of the
first make MiniLM's cosine similarity to the second. Tokens are deleted in that order, for good: the
network then reads a shorter sentence. A method's score is the mean similarity along the way (the
area under the curve) over the similarity of the whole sentence; lower is better. Pairs share their
draws in groups of ten. Prints a table and a ranking by paired tests, and writes the result beside
this file, with machine, versions and date. About ten minutes of two cores.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import smoothjax as sj
from benchmarks.record import sentence_pairs, write_record
from smoothjax import zoo
from smoothjax.evaluation import Evaluation

LENGTH = 13  # of the longest sentence, in tokens
GROUP = 10  # pairs that share their draws


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=25, help="draws of noise")
    parser.add_argument("--pairs", type=int, default=100, help="a multiple of 10")
    arguments = parser.parse_args()

    net = zoo.load("minilm-l6")
    pairs = sentence_pairs()[: arguments.pairs]
    xs, masks = embedded(net, [first for first, _ in pairs])
    others = in_groups(lambda key, *args: net.encode(*args))(
        net.params, *embedded(net, [second for _, second in pairs])
    )
    examples = net.params, xs, masks, others
    similarity = in_groups(lambda key, *args: net.score(*args))(*examples)
    area_of = in_groups(functools.partial(area, net))
    scores = {}

    def judge(name, tokens):
        areas = area_of(net.params, tokens, xs, masks, others)
        scores[name] = {"deletion": np.asarray(areas / similarity, float)}
        print(f"{scores[name]['deletion'].mean():.3f}  {name}", flush=True)

    def judge_gradients(name, explain):
        gradients = in_groups(explain)(*examples)
        judge(f"{name}, norm", jnp.linalg.norm(gradients, axis=-1))
        judge(f"{name}, times the embedding", jnp.sum(gradients * xs, axis=-1))

    judge("random order", jax.random.normal(jax.random.key(1), masks.shape))
    occlusion = sj.occlusion(functools.partial(score_of_mask, net), axes=(0,))

    def left_out(key, params, x, mask, other):
        return occlusion(params, mask.astype(x.dtype), x, other)

    judge("leaving each token out", in_groups(left_out)(*examples))
    saliency = sj.saliency(net.score)
    judge_gradients("gradient", without_key(saliency))
    for name, explain in {
        "integrated gradients from 0": sj.integrated_gradients(net.score, num_steps=20),
        "LRP": sj.lrp(net.score),
    }.items():
        judge(name, in_groups(without_key(explain))(*examples).sum(-1))
    options = {"num_samples": arguments.samples}
    noisegrad = sj.noisegrad(saliency, net.sigma_weights, where=net.where, **options)
    judge_gradients("NoiseGrad", noisegrad)
    spread = jnp.std(net.params["word"]["embedding"], axis=0)
    for share in (0.3, 1.0):
        smooth = sj.smoothgrad(saliency, share * spread, **options)
        judge_gradients(f"SmoothGrad, {share} of the spread", smooth)
    judge_gradients("SmoothGrad, 15 % of the range", sj.smoothgrad(saliency, **options))

    result = Evaluation(scores)
    ranking = result.ranking("deletion", lower_is_better=True)
    print(ranking)
    write_record(
        pathlib.Path(__file__).with_suffix(".json"),
        {
            "model": net.name,
            "pairs": len(pairs),
            "draws": arguments.samples,
            "sigma_weights": net.sigma_weights,
            "similarity": float(similarity.mean()),
            "spread": float(spread.mean()),
            "range": float(np.mean([np.ptp(x[m]) for x, m in zip(xs, masks, strict=True)])),
            "deletion": {
                name: {"mean": float(row.mean), "stderr": float(row.stderr)}
                for name, row in ranking.estimates.items()
            },
            "comparisons": [one._asdict() for one in ranking.comparisons],
        },
    )


def embedded(net, sentences):
    """The embeddings and masks of sentences, stacked."""
    tokens = [net.tokens(sentence, LENGTH) for sentence in sentences]
    xs = jnp.stack([net.embed(net.params, one.ids) for one in tokens])
    return xs, jnp.stack([one.mask for one in tokens])


def in_groups(fun):
    """`fun(key, params, *example)`, stochastic, of all examples: a group at a time."""

    def run(params, *examples):
        batched = jax.jit(jax.vmap(fun, (None, None, *[0] * len(examples))))
        starts = range(0, len(examples[0]), GROUP)
        found = [
            batched(jax.random.key(start), params, *(a[start : start + GROUP] for a in examples))
            for start in starts
        ]
        return jnp.concatenate(found)

    return run


def without_key(explain):
    return lambda key, *args: explain(*args)


def score_of_mask(net, params, mask, x, other):
    return net.score(params, x, mask, other)


def area(net, key, params, tokens, x, mask, other):
    """The mean similarity while tokens are deleted, the greatest first; padding does not count."""
    curve = sj.metrics.deletion_curve(
        functools.partial(score_of_mask, net), num_steps=LENGTH, axes=(0,)
    )
    ranked = jnp.where(mask, tokens, -jnp.inf)
    value = curve(params, mask.astype(x.dtype), ranked, x, other).value
    steps = jnp.arange(LENGTH) < mask.sum()
    return jnp.mean((value[1:] + value[:-1]) / 2, where=steps)


if __name__ == "__main__":
    main()
