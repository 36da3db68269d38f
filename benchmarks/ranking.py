"""Ranks explainers on real photos with `evaluate`, each smoothed one with 16 draws.

    python benchmarks/ranking.py --photos ../shared/data/imagenet_sample_224.npz

EfficientNet-Lite0, on photos that it is sure of. Maps are pooled over channels by the L2 norm, as
pictures show them. Interrupted, it goes on from the scores under benchmarks/.cache. Prints the
table and the rankings, and writes ranking.json and ranking.png beside this file; 10 minutes on two
cores.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
from record import archived_photos, write_record

import smoothjax as sj
from smoothjax import metrics, zoo

HERE = pathlib.Path(__file__).parent
DRAWS = 16
LOWER_IS_BETTER = {"insertion - deletion": False, "sensitivity": True, "Gini": False}


def explainers(net):
    saliency, sigma = sj.saliency(net.score), net.sigma_weights
    smoothed = {
        "saliency": saliency,
        "SmoothGrad": sj.smoothgrad(saliency, num_samples=DRAWS),
        "NoiseGrad": sj.noisegrad(saliency, sigma, num_samples=DRAWS),
        "FusionGrad": sj.fusiongrad(
            saliency, sigma / 2, num_weight_draws=DRAWS // 4, num_input_draws=4
        ),
        "AdaptGrad": sj.adaptgrad(saliency, net.bounds, num_samples=DRAWS),
        "SquareGrad": sj.squaregrad(saliency, num_samples=DRAWS),
        "integrated gradients": sj.integrated_gradients(net.score, num_steps=DRAWS),
    }

    @sj.stochastic
    def noise(key, params, x, label):
        return jax.random.normal(key, x.shape[:2])

    pooled = {name: sj.pool(explain, jnp.linalg.norm) for name, explain in smoothed.items()}
    return {**pooled, "Grad-CAM": sj.gradcam(net.features, net.head), "random numbers": noise}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=pathlib.Path, required=True)
    parser.add_argument("--number", type=int, default=24, help="of photos")
    arguments = parser.parse_args()

    net = zoo.load("efficientnet-lite0")
    photos = archived_photos(net, arguments.photos, arguments.number)
    (HERE / ".cache").mkdir(exist_ok=True)
    result = sj.evaluate(
        explainers(net),
        {
            "insertion - deletion": metrics.insertion_minus_deletion(net.probability),
            "Gini": lambda params, x, attribution, label: metrics.gini(attribution),
        },
        {"sensitivity": lambda e: metrics.max_sensitivity(e, radius=0.02, num_samples=4)},
        net.params,
        (jnp.stack([photo.x for photo in photos]), jnp.array([photo.label for photo in photos])),
        jax.random.key(0),
        batch_size=4,
        path=HERE / ".cache" / f"ranking-{arguments.photos.stem}-{arguments.number}.jsonl",
    )
    print(result)
    rankings = {
        metric: str(result.ranking(metric, lower_is_better=lower))
        for metric, lower in LOWER_IS_BETTER.items()
    }
    print(*rankings.values(), sep="\n\n")
    result.plot().savefig(HERE / "ranking.png", dpi=110)
    summary = {
        explainer: {metric: [float(e.mean), float(e.stderr)] for metric, e in row.items()}
        for explainer, row in result.summary().items()
    }
    write_record(
        HERE / "ranking.json",
        {
            "model": net.name,
            "photos": len(photos),
            "draws": DRAWS,
            "mean_and_stderr": summary,
            "rankings": {metric: text.splitlines() for metric, text in rankings.items()},
        },
    )


if __name__ == "__main__":
    main()
