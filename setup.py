"""Packaging of dsx; see README.md for how to install and run it."""

import pathlib

import setuptools

_HERE = pathlib.Path(__file__).parent

setuptools.setup(
  name="dsx",
  version="0.1.0",
  description="DeepSeek-V3, DeepSeek-R1 and Janus-Pro in JAX",
  long_description=(_HERE / "README.md").read_text(encoding="utf-8")
  if (_HERE / "README.md").exists()
  else "",
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(
    include=["dsx", "dsx.*", "experiments", "experiments.*"]
  ),
  install_requires=[
    "absl-py",
    "array-record",
    "chex",
    "einops",
    "flax",
    "gin-config",
    "grain",
    "jax>=0.10.2,<0.13",
    "math-verify",
    "matplotlib",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "prometheus-client",
    "pyyaml",
    "rich",
    "safetensors",
    "seqio",
    "starlette",
    "tensorboardX",
    "tensorflow-datasets",
    "tokenizers",
    "uvicorn",
  ],
  extras_require={
    "gpu": ["jax[cuda13]>=0.10.2,<0.13"],
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "test": [
      "hypothesis",
      "ipykernel",
      "lm-eval[api]",
      "nbmake",
      "openai",
      "pre-commit",
      "pyright[nodejs]",
      "pytest",
      "pytest-xdist",
      "ruff",
      "torch==2.13.0",
      "transformers",
    ],
    "notebooks": ["ipykernel", "jupyterlab"],
  },
)
