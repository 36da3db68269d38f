"""Finds the weight noise that costs a network 5 % of its accuracy: `sigma_weights` of the zoo.

    python -m benchmarks.calibrate --photos ../shared/data/imagenet_sample_224.npz
    python -m benchmarks.calibrate --model minilm-l6

The photos are an .npz with uint8 `images` (n, H, W, 3) and their ImageNet `labels`. MiniLM is to
find, for each sentence of sentences.tsv, the one that means the same, by the similarity to the
vectors of all others, which have no noise. Prints the accuracy drop at the copied default and
around the level found, and writes the result beside this file, with machine, versions and date.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import smoothjax as sj
from benchmarks.record import sentence_pairs, write_record
from smoothjax import zoo


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path, help="unless the model is for sentences")
    parser.add_argument("--model", default="efficientnet-lite0")
    parser.add_argument(
        "--samples", type=int, default=25, help="draws of the weights at each level"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    net = zoo.load(arguments.model)
    is_text = isinstance(net, zoo.TextNetwork)
    predict, xs, labels = retrieval(net) if is_text else photos(net, arguments.photos)
    key = jax.random.key(arguments.seed)
    options = {"num_samples": arguments.samples, "batch_size": 20 if is_text else 5}
    options |= {"where": net.where} if is_text else {}
    start = time.perf_counter()
    interval = (0.05, 1.0) if is_text else (0.002, 0.2)
    find = sj.sigma_for_accuracy_drop(predict, interval=interval, num_steps=6, **options)
    found = jax.jit(find)(key, net.params, xs, labels)
    print(f"{net.name}: sigma {found.sigma:.4f} +- {found.stderr:.4f} costs", end=" ")
    print(f"{found.drop.mean:.1%} +- {found.drop.stderr:.1%} of the accuracy", flush=True)

    clean = jax.lax.map(lambda x: jnp.argmax(predict(net.params, x)), xs, batch_size=5)
    drop_at = jax.jit(sj.accuracy_drop(predict, **options))
    table = []
    for sigma in (0.1, 0.2, 0.5) if is_text else (0.01, 0.02, 0.05, 0.1, 0.2):
        drop = drop_at(key, net.params, xs, labels, sigma)
        table.append({"sigma": sigma, "drop": float(drop.mean), "stderr": float(drop.stderr)})
        print(f"  sigma {sigma}: {drop.mean:.1%} +- {drop.stderr:.1%}", flush=True)

    write_record(
        pathlib.Path(__file__).with_name(f"calibrate-{net.name}.json"),
        {
            "model": net.name,
            "sentences" if is_text else "photos": len(labels),
            "draws": arguments.samples,
            "top1": float(jnp.mean(clean == labels)),
            "sigma_weights": float(found.sigma),
            "sigma_weights_stderr": float(found.stderr),
            "drop": float(found.drop.mean),
            "drop_stderr": float(found.drop.stderr),
            "drops": table,
            "seconds": time.perf_counter() - start,
        },
    )


def photos(net, path):
    """What predicts, the photos of an archive, and their labels."""
    data = np.load(path)
    xs = jnp.stack([net.preprocess(photo) for photo in data["images"]])
    return lambda params, x: net.apply(params, x[None])[0], xs, jnp.asarray(data["labels"])


def retrieval(net):
    """What says how alike a sentence and each of the others are, the sentences, and their pairs."""
    sentences = [sentence for pair in sentence_pairs() for sentence in pair]
    tokens = [net.tokens(sentence, 13) for sentence in sentences]
    ids, masks = (jnp.stack([getattr(one, name) for one in tokens]) for name in ("ids", "mask"))

    def encode(params, ids, mask):
        return net.encode(params, net.embed(params, ids), mask)

    vectors = jax.jit(jax.vmap(encode, (None, 0, 0)))(net.params, ids, masks)

    def predict(params, x):
        ids, mask, number = x
        return (vectors @ encode(params, ids, mask)).at[number].set(-1)

    numbers = jnp.arange(len(sentences))
    return predict, (ids, masks, numbers), numbers ^ 1


if __name__ == "__main__":
    main()
