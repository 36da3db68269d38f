"""How benchmarks write down what they measured: with machine, versions and date."""

import datetime
import json
import os
import platform

import jax
import jaxlib
import numpy as np

import smoothjax as sj


def write_record(path, result):
    """Writes a result, and where and when it was measured, as JSON."""
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "devices": [device.device_kind for device in jax.devices()],
        },
        "versions": {
            "smoothjax": sj.__version__,
            "jax": jax.__version__,
            "jaxlib": jaxlib.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        **result,
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {path}")


def _processor():
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
        return names[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
