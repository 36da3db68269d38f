"""What `python -m smoothjax --features` does: pictures of what a network looks for in classes."""

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import smoothjax as sj
from smoothjax._gallery import (
    UserError,
    class_index,
    keep_compiled,
    load,
    make_folder,
    output_files,
    png,
    progress_bar,
    taken_files,
    write,
)

if TYPE_CHECKING:
    from smoothjax.zoo import Network

NUM_STEPS = 128


def draw_classes(args: argparse.Namespace) -> "Network":
    """Writes a picture and a JSON file about each class, and returns the network.

    Raises:
      UserError: if that cannot be done.
    """
    net = load(args.model)
    if args.cache:
        keep_compiled()
    labels = [class_index(name, net.class_names, "--features") for name in args.features]
    make_folder(args.out)
    programs = {name: jax.jit(ascent) for name, ascent in ascents(net).items()}
    probability = jax.jit(net.probability)
    key, taken = jax.random.key(args.seed), taken_files(args.photos, args.out)
    with progress_bar(len(labels) * len(programs), unit="picture") as bar:
        for label in map(jnp.int32, labels):
            name = net.class_names[label]
            bar.set_description(name)
            images, records = {}, {}
            for way, ascent in programs.items():
                found = ascent(key, net.params, label)
                records[way] = {
                    "logit": float(net.score(net.params, found.image, label)),
                    "probability": float(probability(net.params, found.image, label)),
                }
                images[f"{way}\n{records[way]['probability']:.0%}"] = net.unprocess(found.image)
                bar.update()
            report = {
                "smoothjax": sj.__version__,
                "model": args.model,
                "seed": args.seed,
                "class": {"label": int(label), "name": name},
                "steps": NUM_STEPS,
                "weight_noise": net.sigma_weights,
                "pictures": records,
            }
            contents = {
                ".png": picture(name, images),
                ".json": (json.dumps(report, indent=2) + "\n").encode(),
            }
            stem = "feature-" + re.sub(r"\W+", "-", name)
            files = output_files(stem, args.out, contents, taken)
            try:
                for file, content in zip(files, contents.values(), strict=True):
                    write(file, content)
            except OSError as error:
                raise UserError(str(error)) from error
            bar.write(f"  wrote {', '.join(repr(str(file)) for file in files)}")
    return net


def ascents(net: "Network") -> dict[str, Any]:
    """Returns the ascent without and that with noise on the weights, by what to call them."""
    import optax

    noisy = sj.noisegrad(net.score, net.sigma_weights, num_samples=1)
    return {
        name: sj.feature_visualization.activation_maximization(
            objective,
            optax.adam(0.1),
            shape=(net.image_size, net.image_size, 3),
            bounds=net.bounds,
            num_steps=NUM_STEPS,
        )
        for name, objective in {"plain": net.score, "noise on the weights": noisy}.items()
    }


def picture(name: str, images: dict[str, np.ndarray]) -> bytes:
    """Returns images beside each other, with their titles, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(images), 3.7), layout="constrained")
    figure.suptitle(name)
    for axes, (title, image) in zip(figure.subplots(1, len(images)), images.items(), strict=True):
        axes.imshow(image)
        axes.set_title(title, fontsize="small")
        axes.set_axis_off()
    return png(figure)
