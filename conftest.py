"""JAX is made strict before it starts, and doctests find the names that users import."""

import importlib.metadata
import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    # Compiling is most of what the tests do.
    " --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Half of the rest; XLA has the flag in some versions only, and refuses what it does not know.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(autouse=True, scope="session")
def _names_in_doctests(doctest_namespace):
    import smoothjax as sj

    doctest_namespace.update(functools=functools, jax=jax, jnp=jnp, np=np, sj=sj)
