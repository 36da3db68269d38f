"""The documents show what the records of benchmarks/ hold."""

import re

import pytest

from benchmarks import tables

TEXTS = {document: document.read_text(encoding="utf-8") for document in tables.DOCUMENTS}


@pytest.mark.parametrize("document", TEXTS, ids=lambda path: path.name)
def test_documents_are_what_the_generator_writes(document):
    assert tables.generated(TEXTS[document]) == TEXTS[document], "run python -m benchmarks.tables"


def test_every_table_and_figure_is_shown():
    shown = {name for text in TEXTS.values() for _, name in re.findall(tables.BEGIN, text)}
    assert shown == tables.TABLES.keys() | tables.FIGURES.keys()


def test_no_line_begins_with_a_figure():
    """Markdown would take it for HTML."""
    assert not any(re.search(r"^\s*<!-- figure", text, re.MULTILINE) for text in TEXTS.values())


@pytest.mark.parametrize(
    "text",
    [
        "<!-- figure: level_lite0 -->0.1",
        "0.1<!-- end -->",
        "<!-- figure: level_lite0 --><!-- figure: level_lite0 -->0.1<!-- end -->",
    ],
)
def test_a_region_that_is_open_is_an_error(text):
    with pytest.raises(SystemExit, match="each region"):
        tables.generated(text)


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.02228, 0.00437, "0.022 +- 0.004"),
        (0.33287, 0.02048, "0.333 +- 0.020"),
        (-0.0335, 0.0372, "-0.03 +- 0.04"),
        (23.6, 10.2, "24 +- 10"),
        (0.387, 0.0962, "0.39 +- 0.10"),
        (123.4, 47.1, "123 +- 47"),
        (100.0, 0.0, "100 +- 0"),
        (33.46, None, "33"),
        (0.05, None, "0.050"),
    ],
)
def test_a_value_is_rounded_to_its_error(value, error, expected):
    assert tables.estimate(value, error) == expected


RECORD = {
    "date": "2026-12-01",
    "machine": {"processor": "Intel(R) Xeon(R)", "cores": 2, "devices": ["cpu"]},
    "versions": {"jax": "0.10.2"},
}


def test_smoothdiff():
    methods = {
        "smoothdiff, 8 draws": {"mean": 0.92391, "least": 0.8993, "gradients": 5.611},
        "smoothgrad_toward smoothdiff, 64 draws": {"mean": 0.9, "least": 0.8},
    }
    record = {**RECORD, "network": "lenet", "photos": [3, 5], "reference": 128, "methods": methods}
    assert tables.smoothdiff(record).splitlines() == [
        "| method | draws | mean cosine | least | time in gradients |",
        "| --- | --- | --- | --- | --- |",
        "| `smoothdiff` | 8 | 0.924 | 0.899 | 5.6 |",
        "| `smoothgrad_toward`, from a map of `smoothdiff` | 64 | 0.900 | 0.800 |  |",
        "",
        "2026-12-01, 2 cores of Intel Xeon, JAX 0.10.2: `lenet`, 2 photos, two keys, "
        "two limits of 128 draws.",
    ]


def test_weight_noise_has_its_levels_in_order():
    record = {
        **RECORD,
        "machine": {"processor": "any", "cores": 8, "devices": ["NVIDIA H200"]},
        "model": "lenet",
        "photos": 10,
        "draws": 3,
        "top1": 0.8,
        "sigma_weights": 0.1,
        "sigma_weights_stderr": 0.03,
        "drop": 0.05,
        "drop_stderr": 0.004,
        "drops": [
            {"sigma": 0.2, "drop": 0.5, "stderr": 0.06},
            {"sigma": 0.01, "drop": 0.001, "stderr": 0.002},
        ],
    }
    assert tables.weight_noise(record).splitlines() == [
        "| weight noise on `lenet` | 0.01 | 0.100 +- 0.030 | 0.2 |",
        "| --- | --- | --- | --- |",
        "| share of the accuracy lost, % | 0.10 +- 0.20 | 5.0 +- 0.4 | 50 +- 6 |",
        "",
        "2026-12-01, 1 x NVIDIA H200, JAX 0.10.2: 10 photos, 3 draws of the weights; without noise "
        "80.0 % are right.",
    ]
