"""Writes the tables and figures of README.md, docs/ and benchmarks/README.md from the records.

    python -m benchmarks.tables

A table stands between `<!-- table: NAME -->` and `<!-- end -->`, a figure inside a sentence between
`<!-- figure: NAME -->` and `<!-- end -->`, never at the start of a line, where Markdown takes it
for HTML. Each is what the function of that name in TABLES or FIGURES says of its record, a JSON
beside this file; of several records there is a table each.
"""

import functools
import json
import math
import pathlib
import re
import statistics
import textwrap

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), HERE / "README.md")
BEGIN, END = r"<!-- (table|figure): (\S+) -->", "<!-- end -->"


def main():
    for document in DOCUMENTS:
        old = document.read_text(encoding="utf-8")
        new = generated(old)
        if new != old:
            document.write_text(new, encoding="utf-8")
            print(f"wrote {document.relative_to(ROOT)}")


def generated(text):
    """A document, each of its regions made anew."""

    def region(match):
        begin, kind, name = match[1], match[2], match[3]
        if kind == "figure":
            return f"{begin}{content(*FIGURES[name])}{END}"
        return f"{begin}\n{content(*TABLES[name])}\n{END}"

    new, number = re.subn(rf"({BEGIN})(?:(?!<!--).)*{END}", region, text, flags=re.DOTALL)
    if not len(re.findall(BEGIN, text)) == text.count(END) == number:
        raise SystemExit(f"each region begins with {BEGIN} and ends with {END}:\n{text}")
    return new


def content(records, function):
    """What a function says of each of the records of a name, which may hold a `*`."""
    found = sorted(HERE.glob(f"{records}.json"), key=lambda path: path.stem)
    if not found:
        raise SystemExit(f"there is no record {records}.json in {HERE}")
    return "\n\n".join(function(json.loads(path.read_text(encoding="utf-8"))) for path in found)


def table(header, rows):
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def paragraphs(*texts):
    """Tables and sentences, these broken at 120 columns, with empty lines between."""
    fill = functools.partial(textwrap.fill, width=120, break_on_hyphens=False)
    return "\n\n".join(text if text.startswith("|") else fill(text) for text in texts)


def source(record, what):
    """When and where a record was measured, and what of."""
    machine, jax = record["machine"], record["versions"]["jax"]
    kind, *others = machine["devices"]
    place = f"{machine['cores']} cores of {machine['processor'].replace('(R)', '')}"
    if kind != "cpu":
        place = f"{1 + len(others)} x {kind}"
    return f"{record['date'][:10]}, {place}, JAX {jax}: {what}."


def digits(value, number):
    """A value with so many significant digits."""
    return f"{value:#.{number}g}".removesuffix(".")


def estimate(value, error):
    """A value to the place of its error, which has two digits up to 35, and else one.

    That is how the Particle Data Group rounds. Without an error, the value has two digits.
    """
    if error is None:
        return digits(value, 2)
    if error == 0:
        return f"{value:.3g} +- 0"
    exponent = math.floor(math.log10(error))
    places = max(0, -exponent + (error < 3.55 * 10**exponent))
    return f"{value:.{places}f} +- {error:.{places}f}"


def percent(value, error):
    return estimate(100 * value, 100 * error)


def throughput(record):
    compared = {  # and the names of what the time is divided by
        "smoothgrad": ("SmoothGrad of {draws} draws / as many bare gradients", ["bare"]),
        "noisegrad": (
            "a draw of NoiseGrad on one image / (perturbing the weights alone + the gradient)",
            ["perturb", "gradient"],
        ),
        "batch": (
            "a draw of NoiseGrad that {images} images share / their bare gradients",
            ["gradient"],
        ),
        "samplers": ("perturbing {weights:,} weights", ["jax.random.normal"]),
        "tolerance": (
            "a loop that checks its error after each chunk / one of a fixed number of draws",
            ["fixed"],
        ),
    }
    rows = []
    for name, (what, divisors) in compared.items():
        part = record["parts"][name]
        times, ratios = (
            next(value for key, value in part.items() if key.startswith(start))
            for start in ("milliseconds", "over_")
        )
        for variant, found in ratios.items():
            _, comma, sampler = variant.partition(", ")
            over = [times.get(f"{one}{comma}{sampler}", times.get(one)) for one in divisors]
            label = what.format(**part)
            if name == "samplers":
                label += f" with `{variant}` / with `jax.random.normal`"
            elif sampler:
                label += f", noise by `{sampler}`"
            milliseconds = f"{times[variant]:.1f} / {' + '.join(f'{time:.1f}' for time in over)}"
            rows.append([label, f"{found['ratio']:.2f}", f"{found['target']:.2f}", milliseconds])
    tables = [table(["time / time", "measured", "at most", "milliseconds"], rows)]
    if "ordinary" in record["parts"]:
        tables.append(ordinary(record["parts"]["ordinary"]))
    taken = record["parts"]["compile"]["seconds"]
    seconds = ", ".join(f"{name} {digits(value, 2)}" for name, value in taken.items())
    return paragraphs(
        *tables,
        f"Seconds to compile: {seconds}.",
        source(record, f"`{record['model']}` at 224 pixels"),
    )


def ordinary(part):
    """SmoothGrad against a loop over draws that is written by hand, on networks in plain Flax."""
    rows = []
    for network, measured in part["networks"].items():
        for what, found in measured.items():
            memory = found["megabytes"]["smoothgrad"] / found["megabytes"]["hand"]
            ratios = [f"{found['over_hand'][key]:.2f}" for key in ("ratio", "target")]
            rows.append([f"{network}, {what}", *ratios, f"{memory:.2f}"])
    what = f"SmoothGrad of {part['draws']} draws at {part['pixels']} pixels / `vmap` by hand"
    return table([what, "time", "at most", "memory"], rows)


def peers(record):
    part = record["parts"]["peers"]
    workers, methods = part["workers"], part["methods"]
    against = {
        "SmoothGrad": ("ours-smoothgrad", "Captum's `NoiseTunnel(Saliency)`"),
        "NoiseGrad of 8 images": (
            "ours-noisegrad",
            "reload the weights, perturb them in place, one gradient",
        ),
        "AdaptGrad": ("ours-adaptgrad", "the authors' loop, a gradient at a time"),
    }
    rows = []
    for name, (worker, what) in against.items():
        found = methods[name]
        ratios = [f"{found[key]:.2f}" for key in ("call_megabytes", "peak_megabytes")]
        target = f"{found['target']:.2f}" if found["target"] else ""
        label = f"{name}, {workers[worker]['draws']} draws"
        rows.append([label, what, f"{found['ratio']:.2f}", target, *ratios])
    if half := part["to_half"]:
        label = "SmoothGrad to a squared relative error of 0.5, with `wiener(channel_axis=-1)`"
        times = [f"{half[key]:.2f}" for key in ("ratio", "target")]
        rows.append([label, "Captum's, likewise", *times, "", ""])
    if found := part.get("to_cosine"):
        times = [digits(found[key], 2) for key in ("ratio", "target")]
        captum = f"Captum's, {found['draws']:.0f} draws"
        memory = f"{found['call_megabytes']:.2f}"
        rows.append(["SmoothDiff to a cosine of 0.9", captum, *times, memory, ""])
    header = ["method", "against", "time", "time, at most", "memory of a call", "of the process"]
    best, at_once = (workers[f"pytorch-captum{suffix}"] for suffix in ("", "_all_at_once"))
    slower = at_once["seconds"] / best["seconds"]
    gigabytes = at_once["call_megabytes"] / 1000
    return paragraphs(
        table(header, rows),
        f"Captum with all {best['draws']} draws in one batch, its default, takes {slower:.1f} "
        f"times as long as at its best, and {gigabytes:.1f} GB.",
        source({**record, "date": part["date"]}, f"`{record['model']}` at 224 pixels"),
    )


CONVERGENCE = {
    "plain": "plain averaging",
    "pairs": "antithetic pairs",
    "plain, scaled": "averaging, times its best factor",
    "wiener": "`wiener()`",
    "joint": "`wiener(channel_axis=-1)`",
    "pairs, joint": "`wiener(channel_axis=-1)` of antithetic pairs",
    "single rings": "`wiener()`, each ring estimated by itself",
    "windows": "rings of overlapping windows of 56 pixels",
    "weighted": "draws weighted by the inverse of their power",
}


def convergence_rows(curves, number, last):
    """A row for each method, with as many digits and what is last."""
    return [
        [title, *(digits(value, number) for value in curves[method].values()), last(method)]
        for method, title in CONVERGENCE.items()
        if method in curves
    ]


def convergence_source(record, found):
    limits = found["squared_errors_of_the_limits"]
    return source(
        record,
        f"`{record['model']}`, {len(limits)} photos, limits of {found['draws_of_the_limit']} draws "
        f"whose own squared error is {statistics.mean(limits):.3f}",
    )


def convergence_input(record):
    found = record["kinds"]["input"]
    errors, cosines, agreement = (
        found[key] for key in ("squared_error", "cosine_to_the_limit", "agreement")
    )
    share, times = found["over_plain_at_64"], found["milliseconds_per_draw"]
    return paragraphs(
        "Squared relative error, with noise of 15 % of the range on inputs:",
        table(
            ["draws", *errors["plain"], "draws to 0.5"],
            convergence_rows(errors, 3, lambda method: f"{found['draws_to_half'][method]:.0f}"),
        ),
        "Cosine to the limit, with the same noise:",
        table(
            ["draws", *cosines["plain"], "of two maps at 64"],
            convergence_rows(
                cosines, 2, lambda method: digits(agreement[method]["64"]["cosine"], 2)
            ),
        ),
        f"At 64 draws the squared error of `wiener()` is {share['wiener']['ratio']:.2f} of plain "
        f"averaging's, that of `wiener(channel_axis=-1)` {share['joint']['ratio']:.2f}; the aim "
        f"was {share['joint']['target']}. A draw takes {times['wiener']:.1f} and "
        f"{times['joint']:.1f} ms, a plain one {times['plain']:.1f}.",
        convergence_source(record, found),
    )


def convergence_weights(record):
    found = record["kinds"]["weights"]
    errors, cosines = found["squared_error"], found["cosine_to_the_limit"]

    def cosine(method):  # a factor changes none
        return f"{cosines.get(method, cosines['plain'])['64']:.3f}"

    return paragraphs(
        "Squared relative error, with noise of the calibrated level on weights:",
        table(
            ["draws", *errors["plain"], "cosine to the limit at 64"],
            convergence_rows(errors, 3, cosine),
        ),
        convergence_source(record, found),
    )


def channels_gain(record):
    """By how much the matrix over channels brings the error down, of each photo."""
    both = (record["kinds"]["input"]["over_plain_at_64"][name] for name in ("joint", "wiener"))
    gains = [
        1 - joint / alone for joint, alone in zip(*(one["photos"] for one in both), strict=True)
    ]
    return f"{100 * min(gains):.0f} to {100 * max(gains):.0f}"


def scaling(record):
    devices = [str(number) for number in record["devices"]]
    rows = [
        [over, *(f"{record['scaling'][f'strong, over {key}']['speed-up'][d]:.2f}" for d in devices)]
        for key, over in {"draws": "draws (`sharding=`)", "examples": "examples"}.items()
    ]
    header = ["speed-up for the same work, by devices", *devices]
    return paragraphs(table(header, rows), source(record, f"`{record['model']}`"))


JUDGED = {
    "objective": "logit",
    "of held-out networks": "of eight other noisy networks",
    "of the other network": "of Lite2",
    "probability of the other network": "its probability by Lite2",
    "recognised by the other network": "recognised by Lite2",
    "total variation": "total variation",
}


def judged(what, titles, rows, record):
    """A table of images, and where it comes from."""
    cells = [
        [
            titles.get(name, name),
            *(estimate(found[key]["mean"], found[key]["stderr"]) for key in JUDGED),
        ]
        for name, found in rows.items()
    ]
    settings = f"{record['seeds']} seed" + "s" * (record["seeds"] > 1)
    settings += f", {record['steps']} steps, {len(record['classes'])} classes"
    return paragraphs(table([what, *JUDGED.values()], cells), source(record, settings))


def feature_visualization(record):
    titles = {
        "drawn anew": "one network, drawn anew at each step",
        "four networks": "four networks, the same at all steps",
    }
    return judged("ascent of a class's logit", titles, record["found"]["classes"], record)


def feature_visualization_defaults(record):
    titles = {"fourier": "`fourier()`, jitter and zoom: the default"}
    return judged("parameterization and augmentation", titles, record["rows"], record)


def breaking(record):
    curves = table(
        ["noise on", *map(str, record["levels"])],
        [[name, *(percent(*drop) for drop in drops)] for name, drops in record["curves"].items()],
    )
    what = f"`{record['model']}`, {record['photos']} photos, {record['draws']} draws of the weights"
    return paragraphs(curves, source(record, what))


def breaking_layers(record):
    most = sorted(record["layers"], key=lambda row: row["drop"], reverse=True)[:6]
    rows = [
        [
            row["layer"],
            str(row["weights"]),
            percent(row["drop"], row["stderr"]),
            f"{100 * row['share']:.0f}",
            f"{row['change']:.1f}",
        ]
        for row in most
    ]
    header = ["layer", "weights", "accuracy lost, %", "share, %", "change of the logits"]
    alike, equal = (record["rules"][name] for name in ("equal effects", "equal levels"))
    return paragraphs(
        table(header, rows),
        "Levels by layer with which all layers change the logits alike cost "
        f"{percent(alike['drop'], alike['stderr'])} % at a geometric mean of "
        f"{alike['factor']:.3f}; one level for all, "
        f"{percent(equal['drop'], equal['stderr'])} % at {equal['factor']:.3f}.",
    )


def smoothdiff(record):
    titles = {
        "smoothdiff": "`smoothdiff`",
        "smoothgrad": "`smoothgrad`",
        "wiener": "`smoothgrad` with `wiener(channel_axis=-1)`",
        "smoothgrad_toward smoothdiff": "`smoothgrad_toward`, from a map of `smoothdiff`",
    }
    rows = []
    for name, found in record["methods"].items():
        method, _, draws = name.removesuffix(" draws").rpartition(", ")
        gradients = f"{found['gradients']:.1f}" if "gradients" in found else ""
        cosines = [f"{found[key]:.3f}" for key in ("mean", "least")]
        rows.append([titles[method], draws, *cosines, gradients])
    network = record["network"]
    what = f"`{network}`, {len(record['photos'])} photos, two keys, "
    what += f"two limits of {record['reference']} draws"
    header = ["method", "draws", "mean cosine", "least", "time in gradients"]
    return paragraphs(table(header, rows), source(record, what))


def smoothdiff_cosine(record):
    return f"{record['methods']['smoothdiff, 8 draws']['mean']:.3f}"


def metrics(record):
    networks = {"lenet": "LeNet, 28 pixels", "efficientnet-lite0": "EfficientNet-Lite0, 224 pixels"}
    names = {
        "pixel_flipping": "pixel flipping",
        "faithfulness_correlation": f"faithfulness correlation, {record['subsets']} subsets",
        "max_sensitivity": f"max-sensitivity, {record['samples']} samples",
    }
    rows = []
    for network, title in networks.items():
        measured = record["networks"][network]
        for name, what in names.items():
            found = measured["metrics"][name]
            share = found.get("of_bare_passes_per_second")
            shown = "" if share is None else f"{share:.2f}"
            label = f"{title}, {measured['examples']} images"
            rows.append([label, what, f"{found['over_quantus']:.2f}", shown])
    header = ["network", "metric", "time / that of Quantus", "passes per second / the network's"]
    return paragraphs(table(header, rows), source(record, f"Quantus {record['peers']['quantus']}"))


def masking(record):
    found = record["methods"].values()
    rows = [
        [f"median of {record['repeats']} rounds", *(f"{one['ratio']:.2f}" for one in found)],
        ["quartiles", *("{:.2f}, {:.2f}".format(*one["quartiles"]) for one in found)],
    ]
    header = ["passes per second / the network's", *record["methods"]]
    return paragraphs(table(header, rows), source(record, f"`{record['model']}`"))


def weight_noise(record):
    columns = {
        row["sigma"]: (str(row["sigma"]), percent(row["drop"], row["stderr"]))
        for row in record["drops"]
    }
    level = estimate(record["sigma_weights"], record["sigma_weights_stderr"])
    columns[record["sigma_weights"]] = level, percent(record["drop"], record["drop_stderr"])
    levels, drops = zip(*(columns[sigma] for sigma in sorted(columns)), strict=True)
    examples, answers = (
        ("sentences", "answers") if "sentences" in record else ("photos", "accuracy")
    )
    what = f"{record[examples]} {examples}, {record['draws']} draws of the weights; without noise "
    what += f"{100 * record['top1']:.1f} % are right"
    return paragraphs(
        table(
            [f"weight noise on `{record['model']}`", *levels],
            [[f"share of the {answers} lost, %", *drops]],
        ),
        source(record, what),
    )


def level(record):
    return estimate(record["sigma_weights"], record["sigma_weights_stderr"]).partition(" ")[0]


def text(record):
    rows = [
        [name, estimate(found["mean"], found["stderr"])]
        for name, found in record["deletion"].items()
    ]
    what = f"{record['pairs']} pairs of sentences, {record['draws']} draws of noise"
    return paragraphs(table(["method", "mean similarity left"], rows), source(record, what))


def range_over_spread(record):
    """SmoothGrad's default level at the embeddings, in standard deviations over the vocabulary."""
    return f"{0.15 * record['range'] / record['spread']:.1f}"


def spectra(record):
    titles = {
        "input x gradient": "x * gradient",
        "smoothgrad": "SmoothGrad",
        "squaregrad": "SquareGrad",
        "adaptgrad": "AdaptGrad",
        "noisegrad": "NoiseGrad",
        "gradcam": "Grad-CAM",
        "rise": "RISE",
        "sobol": "Sobol",
        "hsic": "HSIC",
        "random": "random numbers",
    }
    found = record["methods"]["efficientnet-lite0"]
    rows = [
        [
            titles.get(name, name),
            percent(*row["share_above"]["15"]),
            estimate(*row["insertion_minus_deletion"]["plain"]),
            estimate(*row["insertion_minus_deletion"]["gain"]),
        ]
        for name, row in found["methods"].items()
    ]
    header = ["maps", "power above 15 cycles, %", "insertion - deletion", "what the filter gains"]
    what = f"`efficientnet-lite0`, {found['photos']} photos"
    return paragraphs(table(header, rows), source(record, what))


def filter_gain(record):
    """What the filter gains on SmoothGrad's maps of 64 draws, pooled by the absolute mean."""
    (gain,) = (
        row["gain"]
        for row in record["draws"]["rows"]
        if (row["draws"], row["pooling"]) == (64, "|mean|")
    )
    return estimate(*gain)


def tpu(record):
    """What the compiler says of every method on each device, and the time where it was run."""
    methods, chunks = record["parts"].get("lite0", {}), record["parts"].get("chunks", {})
    slices = slices_of(methods)

    def amount(row):
        time = f", {1000 * row['seconds']:.1f} ms" if "seconds" in row else ""
        return f"{row['temporaries'] / 1e6:.0f}{time}" if "temporaries" in row else ""

    rows = []
    for method, found in methods.items():
        devices, row = next(iter(found.items()))
        like = "saliency" if row["draws"] == 1 else "saliency of 8"
        bare = methods.get(like, {}).get(devices)
        ratios = over_bare(row, bare) if bare else ["", ""]
        memory = [amount(found.get(name, {})) for name in slices]
        fits = [f"{one['at_once']} ({name})" for name, one in chunks.get(method, {}).items()]
        rows.append([method, str(row["draws"]), *ratios, *memory, ", ".join(fits)])
    programs = [row for found in methods.values() for row in found.values()]
    of_xla, branches, loops = (
        sum(row.get(key, 0) > 0 for row in programs)
        for key in ("convolutions_of_xla", "branches", "cycles_in_loops")
    )
    noisy, bare = methods.get("noisegrad", {}), methods.get("saliency", {})
    cycles = ", ".join(
        f"{noisy[name]['cycles'] / bare[name]['cycles']:.2f} ({name})"
        for name in slices
        if noisy.get(name, {}).get("cycles") and name in bare
    )
    blocks = record["blocks"]
    estimated = (
        f" By the compiler's estimate, in cycles of a bare gradient, a draw of NoiseGrad takes "
        f"{cycles}; the noise of {blocks['trips']} of the {blocks['leaves']} leaves is drawn at "
        f"once, {blocks['numbers_of_a_trip']} numbers for each."
    )
    return paragraphs(
        table(["method", "at once", "FLOPs", "bytes", *slices, "chunk in 16 GB"], rows),
        f"Of {len(programs)} programs {of_xla} have XLA's own grouped convolutions, which are sums "
        f"of shifted images on a CPU; {branches} have a branch, as noise has on a CPU; {loops} "
        f"have a loop.{estimated if cycles else ''}",
        tpu_source(record),
    )


def tpu_transformer(record):
    """What a device holds of a transformer whose weights are divided."""
    methods = record["parts"].get("transformer", {})
    rows = []
    for name in slices_of(methods):
        bare, noisy = (
            methods.get(method, {}).get(name, {})
            for method in ("saliency of 4", "noisegrad(smoothgrad(saliency))")
        )
        weights, gradients, noise = (
            f"{row[key] / 1e9:.1f}" if key in row else "refused" if "refused" in row else ""
            for row, key in ((bare, "arguments"), (bare, "temporaries"), (noisy, "temporaries"))
        )
        rest = [""] * 3
        if "flops" in bare.keys() & noisy.keys():
            gathered, smallest = noisy["gathered"], noisy["smallest_divided_weight"]
            rest = [*over_bare(noisy, bare), f"{gathered / 1e6:.0f} of {smallest / 1e6:.0f}"]
        rows.append([name, weights, gradients, noise, *rest])
    header = ["", "weights", "gradients", "NoiseGrad", "FLOPs", "bytes", "gathered"]
    return paragraphs(table(header, rows), tpu_source(record))


def slices_of(methods):
    """The names of the devices of a part, in order."""
    found = {devices for rows in methods.values() for devices in rows}
    return sorted(found, key=lambda name: (name.rpartition("-")[0], int(name.rpartition("-")[2])))


def over_bare(row, bare):
    """FLOPs and bytes of a draw over those of a gradient, of as many at once."""
    share = bare["draws"] / row["draws"]
    return [digits(share * row[key] / bare[key], 3) for key in ("flops", "bytes")]


def tpu_source(record):
    """Where a record was compiled, and where it was run too."""
    libtpu = record.get("libtpu")
    return source(record, f"compiled by libtpu {libtpu}" if libtpu else "compiled, and run there")


TABLES = {  # the record of each, and what is said of it
    "breaking": ("breaking", breaking),
    "breaking_layers": ("breaking", breaking_layers),
    "convergence_input": ("convergence", convergence_input),
    "convergence_weights": ("convergence", convergence_weights),
    "feature_visualization": ("feature_visualization", feature_visualization),
    "feature_visualization_defaults": (
        "feature_visualization-defaults",
        feature_visualization_defaults,
    ),
    "masking": ("masking", masking),
    "metrics": ("metrics", metrics),
    "peers": ("throughput", peers),
    "scaling": ("scaling-*", scaling),
    "smoothdiff": ("smoothdiff*", smoothdiff),
    "spectra": ("spectra", spectra),
    "text": ("text", text),
    "throughput": ("throughput", throughput),
    "tpu": ("tpu", tpu),
    "tpu_transformer": ("tpu", tpu_transformer),
    "weight_noise_lite0": ("calibrate-efficientnet-lite0", weight_noise),
    "weight_noise_minilm": ("calibrate-minilm-l6", weight_noise),
}
FIGURES = {
    "box_muller": (
        "throughput",
        lambda record: f"{record['parts']['samplers']['over_normal']['box_muller']['ratio']:.2f}",
    ),
    "channels_gain": ("convergence", channels_gain),
    "chelsea_error": (
        "chelsea",
        lambda record: f"{record['methods']['smoothgrad']['relative_error']:.2f}",
    ),
    "filter_gain": ("spectra", filter_gain),
    "level_lite0": ("calibrate-efficientnet-lite0", level),
    "range_over_spread": ("text", range_over_spread),
    "smoothdiff_cosine": ("smoothdiff", smoothdiff_cosine),
}

if __name__ == "__main__":
    main()
