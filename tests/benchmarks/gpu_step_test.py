"""The benchmark of a GPU's training step, tried on a CPU."""

import pathlib
import re
import subprocess
import sys
import tempfile

from absl.testing import absltest
import jax
import jax.numpy as jnp

from benchmarks import gpu_step
from benchmarks import profiled
from experiments import configuration

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# What dsx installs for other purposes is not there.
_ABSENT = (
  "array_record",
  "gin",
  "grain",
  "safetensors",
  "seqio",
  "starlette",
  "tensorboardX",
  "tensorflow",
  "tensorflow_datasets",
  "tokenizers",
)
_PROGRAM = f"""
import runpy, sys

class Absent:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in {_ABSENT!r}:
      raise ModuleNotFoundError("No module named " + name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ProfiledTest(absltest.TestCase):
  def test_kernels_are_counted_and_traced_back(self):
    @jax.jit
    def step(x):
      with jax.named_scope("router"):
        y = x @ x
      with jax.named_scope("experts"):
        return jax.lax.fori_loop(0, 3, lambda _, z: jnp.sin(z @ z), y)

    x = jnp.ones((128, 128))
    compiled = step.lower(x).compile()
    compiled(x).block_until_ready()
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder):
        for _ in range(4):
          compiled(x).block_until_ready()
      found = profiled.kernels(pathlib.Path(folder))
    self.assertEqual(found, sorted(found, key=lambda k: -k.seconds))
    self.assertFalse([k for k in found if k.operation.startswith("while")])
    named = profiled.sources(compiled.as_text())
    counts = {named.get(k.operation, ""): k.count for k in found}
    router = max(n for what, n in counts.items() if "router" in what)
    experts = max(n for what, n in counts.items() if "experts" in what)
    self.assertEqual((router, experts), (4, 12))
    rows = profiled.rows(found, named, steps=4, most=2)
    self.assertLessEqual(len(rows), 2)
    self.assertLen(rows[0], len(profiled.HEADER))
    shares = [float(row[4].rstrip("%")) for row in rows]
    self.assertBetween(sum(shares), 1, 100.1)

  def test_names_are_shortened_to_what_tells(self):
    text = (
      '  %fusion.1 = f32[2] fusion(%a), metadata={op_name="jit(train_step)/'
      'transpose(jvp(DeepSeek))/while/body/block/mlp/experts/dot_general"}\n'
      '  ROOT %add = f32[2] add(%a, %b), metadata={op_name="jit(f)/add"}\n'
    )
    self.assertEqual(
      profiled.sources(text),
      {"fusion.1": "^block/mlp/experts/dot_general", "add": "add"},
    )

  def test_no_profile(self):
    with self.assertRaisesRegex(ValueError, "expected a profile"):
      profiled.kernels(pathlib.Path(self.create_tempdir().full_path))


class GpuStepTest(absltest.TestCase):
  def test_the_model_is_that_of_the_gin_file(self):
    target = "dsx.models.config.DeepSeekConfig"
    configuration.prepare(target, ["gin_configs/models/v3_small.gin"])
    built = configuration.build(target)
    self.assertEqual(gpu_step.model_config(tiny=False), built)

  def test_a_tiny_step_without_gin_data_or_tensorflow(self):
    done = subprocess.run(
      [
        *(sys.executable, "-c", _PROGRAM, "benchmarks/gpu_step.py"),
        *("--tiny", "--steps=2", "--batch=1", "--length=16"),
      ],
      cwd=_ROOT,
      env={
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
        "PATH": "/usr/bin:/bin",
      },
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    cells = dict(re.findall(r"^\| (\S.*?) +\| (\S.*?) +\|$", done.stdout, re.M))
    self.assertRegex(cells["tokens/s"], r"^[\d,]+$")
    self.assertRegex(cells["MFU"], r"^\d+\.\d% of .* \(measured, float32\)$")
    self.assertRegex(cells["memory, temporary, planned"], r"GiB$")
    self.assertLen(re.findall(r"^\| \d+ +\| `", done.stdout, re.M), 10)


if __name__ == "__main__":
  absltest.main()
