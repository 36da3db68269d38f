"""`python -m smoothjax [PHOTO ...]`: explain photos, one gallery picture and one JSON file each.

Many photos get a page of them, index.html. What is there is never overwritten: names get a number.
`--features CLASS ...` draws what the network looks for in classes.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable

from smoothjax import _features, _gallery, _methods

# Named here too, so that --help works without the zoo.
MODELS = ("efficientnet-lite0", "efficientnet-lite2")


def main(argv: list[str] | None = None) -> int:
    """Runs the command, and returns its exit status: 0, or 2 if anything asked for is missing."""
    args = parser().parse_args(argv)
    try:
        net = _features.draw_classes(args) if args.features else None
        if net and not args.photos:
            return 0
        return 0 if _gallery.explain_photos(args, net) else 2
    except _gallery.UserError as error:
        print(f"smoothjax: error: {error}", file=sys.stderr)
        return 2


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m smoothjax", description=__doc__)
    parser.add_argument(
        "photos",
        nargs="*",
        metavar="PHOTO",
        help="files, or folders of them; default: scikit-image's cat",
    )
    parser.add_argument(
        "--model", default=MODELS[0], help=f"{' or '.join(MODELS)}; default: %(default)s"
    )
    parser.add_argument(
        "--methods",
        default=",".join(_methods.DEFAULT_METHODS),
        type=lambda names: [name.strip() for name in names.split(",")],
        help=f"comma-separated, of {', '.join(_methods.METHODS)}; default: %(default)s",
    )
    parser.add_argument("--label", help="name or index of the class to explain; default: the top-1")
    parser.add_argument(
        "--samples",
        default=50,
        type=integer(2),
        help="draws or steps per map; rise takes 20 masks for each; no effect on "
        f" {', '.join(_methods.IGNORE_SAMPLES)}; "
        "default: %(default)s",
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="names or indices of classes: pictures of what the network looks for in them, without "
        "and with noise on the weights; photos, if any, are named before",
    )
    parser.add_argument(
        "--overlay", action="store_true", help="draw the maps over the photo, in greys"
    )
    parser.add_argument(
        "--colormap", metavar="NAME", help="a colormap of matplotlib; default: magma"
    )
    parser.add_argument(
        "--save-maps",
        action="store_true",
        help="write the maps themselves beside the picture, as NPZ",
    )
    parser.add_argument("--seed", default=0, type=integer(0), help="default: %(default)s")
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="do not keep compiled programs in your cache folder for the next run",
    )
    parser.add_argument(
        "--out",
        default="smoothjax-out",
        type=pathlib.Path,
        metavar="DIR",
        help="folder of the pictures and the JSON files; default: %(default)s",
    )
    return parser


def integer(least: int) -> Callable[[str], int]:
    """Returns a parser of integers that fit into 32 bits and are at least `least`."""

    def parse(text):
        if text.isdecimal() and least <= int(text) < 2**31:
            return int(text)
        raise argparse.ArgumentTypeError(f"needs an integer from {least} on; got {text!r}")

    return parse


if __name__ == "__main__":
    raise SystemExit(main())
