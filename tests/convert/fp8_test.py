"""FP8 checkpoints: read, kept, written, and refused when something is amiss."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from dsx.convert import deepseek as convert
from dsx.convert import name_map
from dsx.models import deepseek
from dsx.models import layout
from dsx.ops import block_scaled
from dsx.ops import dtypes as dtypes_lib
from dsx.parallel import mesh as mesh_lib
from dsx.parallel import sharding as sharding_lib
from tests.convert import checkpoints

_FP8 = np.dtype(ml_dtypes.float8_e4m3fn)
_UP = "model.layers.1.mlp.experts.3.up_proj.weight"
_KV = "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"


def _bits(tree):
  return jax.tree.map(lambda x: np.asarray(x).view(np.uint8), tree)


def _unquantised(*names):
  """An edit that gives these matrices back in bfloat16."""

  def change(tensors):
    for name in names:
      scales = tensors.pop(name + name_map.SCALES)
      scaled = block_scaled.BlockScaled(tensors[name], scales)
      tensors[name] = scaled.dequantise("bfloat16")

  return change


def _as_exponents(tensors):
  for name in tensors:
    if name.endswith(name_map.SCALES):
      tensors[name] = tensors[name].astype(ml_dtypes.float8_e8m0fnu)


class Fp8Test(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.root = pathlib.Path(temporary.name)
    self.folder = self.root / "checkpoint"

  def _write(self, **kwargs):
    return checkpoints.write(self.folder, dtype="fp8", **kwargs)

  def _load(self, **kwargs):
    return convert.load(self.folder, **kwargs)[1]

  def test_linear_layers_and_nothing_else_are_fp8(self):
    self._write()
    tensors = checkpoints.tensors(self.folder)
    for name, array in tensors.items():
      parts = name.split(".")
      is_linear = "_proj" in parts[-2] and parts[-2] != "eh_proj"
      if name.endswith(name_map.SCALES):
        self.assertEqual(array.dtype, np.float32)
        matrix = tensors[name.removesuffix(name_map.SCALES)]
        expected = tuple(-(-n // 128) for n in matrix.shape)
        self.assertEqual(array.shape, expected)
      elif is_linear:
        self.assertEqual(array.dtype, _FP8, name)
        self.assertIn(name + name_map.SCALES, tensors)
      elif name.endswith("e_score_correction_bias"):
        self.assertEqual(array.dtype, np.float32)
      else:
        self.assertEqual(array.dtype.name, "bfloat16", name)
    self.assertEqual(tensors[_KV + name_map.SCALES].shape, (2, 2))
    self.assertEqual(
      checkpoints.fields(self.folder)["quantization_config"],
      {
        "activation_scheme": "dynamic",
        "quant_method": "fp8",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
      },
    )

  @parameterized.parameters("float32", "bfloat16", "float16")
  def test_dequantises(self, dtype):
    """values * scales in float32, rounded once; by a loop over elements."""
    self._write()
    tensors = checkpoints.tensors(self.folder)
    scales = np.kron(tensors[_UP + name_map.SCALES], np.ones((128, 128)))
    values = tensors[_UP].astype(np.float32)
    rows, columns = values.shape
    expected = values * scales[:rows, :columns].astype(np.float32)
    params = self._load(dtype=dtype)["params"]
    got = params["moe_layers"]["mlp"]["experts"]["up_proj"][0, 3]
    np.testing.assert_array_equal(got, expected.T.astype(jnp.dtype(dtype)))
    bias = self._load(dtype=dtype)["router_bias"]
    chex.assert_type(jax.tree.leaves(bias), np.float32)

  def test_model_computes_with_fp8(self):
    """As with the same numbers dequantised to its compute dtype."""
    self._write()
    tokens = np.arange(24).reshape(2, 12) % 32
    dtypes = dtypes_lib.Dtypes(param="bfloat16", compute="bfloat16")
    model = deepseek.DeepSeek(checkpoints.config(), dtypes)
    apply = jax.jit(model.apply)
    kept, _ = apply(self._load(dtype="fp8"), tokens)
    dequantised, _ = apply(self._load(dtype="bfloat16"), tokens)
    self.assertGreater(np.std(kept), 0.5)
    np.testing.assert_array_equal(kept, dequantised)

  def test_layouts_are_those_of_the_models(self):
    self._write()
    config = checkpoints.config()
    for dtype in ("bfloat16", "fp8"):
      stacked = self._load(dtype=dtype)
      layers = self._load(dtype=dtype, layout="layers")
      chex.assert_trees_all_equal(
        _bits(layout.to_layers(config, stacked)), _bits(layers)
      )

  def test_keeps_fp8(self):
    self._write()
    tensors = checkpoints.tensors(self.folder)
    params = self._load(dtype="fp8", layout="layers")["params"]
    up = params["layers_1"]["mlp"]["experts"]["up_proj"]
    self.assertIsInstance(up, block_scaled.BlockScaled)
    self.assertEqual((up.shape, up.dtype), ((4, 160, 136), _FP8))
    chex.assert_shape(up.scales, (4, 2, 2))
    chex.assert_type(up.scales, np.float32)
    np.testing.assert_array_equal(
      np.asarray(up.values[3].T).view(np.uint8), tensors[_UP].view(np.uint8)
    )
    np.testing.assert_array_equal(
      up.scales[3].T, tensors[_UP + name_map.SCALES]
    )
    self.assertEqual(params["norm"]["scale"].dtype, jnp.bfloat16)
    self.assertEqual(params["mtp_0"]["eh_proj"]["kernel"].dtype, jnp.bfloat16)

  @parameterized.product(
    layout=name_map.LAYOUTS, scale_format=("float32", "ue8m0", "e8m0")
  )
  def test_round_trip_is_bit_identical(self, layout, scale_format):
    self._write(scale_format=scale_format)
    self.assertEqual(
      checkpoints.fields(self.folder)["quantization_config"].get("scale_fmt"),
      None if scale_format == "float32" else "ue8m0",
    )
    config, variables = convert.load(self.folder, dtype="fp8", layout=layout)
    # Scales are float32 in memory, whichever way files store them.
    how = {} if scale_format == "float32" else {"scale_format": scale_format}
    convert.save(self.root / "again", config, variables, dtype="fp8", **how)
    self.assertEqual(
      checkpoints.content(self.root / "again"),
      checkpoints.content(self.folder),
    )
    self.assertEqual(
      checkpoints.fields(self.root / "again"), checkpoints.fields(self.folder)
    )

  def test_powers_of_two(self):
    self._write(scale_format="ue8m0")
    scales = checkpoints.tensors(self.folder)[_UP + name_map.SCALES]
    self.assertEqual(scales.dtype, np.float32)
    np.testing.assert_array_equal(np.frexp(scales)[0], 0.5)
    before = self._load()
    checkpoints.edit(self.folder, _as_exponents)
    scales = checkpoints.tensors(self.folder)[_UP + name_map.SCALES]
    self.assertEqual(scales.dtype.name, "float8_e8m0fnu")
    chex.assert_trees_all_equal(self._load(), before)

  def test_any_subset_of_linear_layers(self):
    self._write()
    before = self._load(dtype="bfloat16")
    checkpoints.edit(self.folder, _unquantised(_UP, _KV))
    chex.assert_trees_all_equal(self._load(dtype="bfloat16"), before)
    with self.assertLogs(level="WARNING") as logs:
      params = self._load(dtype="fp8")["params"]
    self.assertLen(logs.output, 1)
    self.assertIn(
      "some tensors of params/moe_layers/mlp/experts/up_proj are FP8 and some "
      "are not; all of them are loaded as bfloat16",
      logs.output[0],
    )
    experts = params["moe_layers"]["mlp"]["experts"]
    self.assertEqual(experts["up_proj"].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(
      experts["up_proj"],
      before["params"]["moe_layers"]["mlp"]["experts"]["up_proj"],
    )
    self.assertEqual(experts["gate_proj"].dtype, _FP8)
    attention = params["dense_layers"]["self_attn"]
    self.assertEqual(
      attention["kv_a_proj_with_mqa"]["kernel"].dtype, jnp.bfloat16
    )

  def test_subset_round_trip(self):
    """What was not FP8 is not made FP8 on the way."""
    self._write()
    checkpoints.edit(self.folder, _unquantised(_KV))
    config, variables = convert.load(self.folder, dtype="fp8")
    convert.save(self.root / "again", config, variables, dtype="fp8")
    self.assertEqual(
      checkpoints.content(self.root / "again"),
      checkpoints.content(self.folder),
    )

  def test_over_a_mesh(self):
    """Every device gets its own part; whole, they are the same arrays."""
    self._write()
    devices = jax.devices()[:4]
    mesh = mesh_lib.make(mesh_lib.MeshShape(local=2, tensor=2), devices)
    rules = sharding_lib.Sharding(
      overrides=(("experts", "local"), ("embed", None))
    )
    for dtype in ("float32", "fp8"):
      one = self._load(dtype=dtype, layout="layers")
      four = self._load(dtype=dtype, layout="layers", mesh=mesh, sharding=rules)
      chex.assert_trees_all_equal(_bits(one), _bits(four))
    up = four["params"]["layers_1"]["mlp"]["experts"]["up_proj"]
    self.assertEqual(up.values.sharding.shard_shape(up.shape), (2, 160, 68))
    self.assertEqual(up.scales.sharding.shard_shape(up.scales.shape), (2, 2, 2))

  def test_mesh_that_does_not_divide(self):
    self._write()
    mesh = mesh_lib.make(mesh_lib.MeshShape(local=8))
    rules = sharding_lib.Sharding(
      overrides=(("experts", "local"), ("embed", None))
    )
    self._refuses(
      r"params/moe_layers/mlp/experts/down_proj of shape \(2, 4, 136, 160\) "
      "does not divide over the mesh",
      mesh=mesh,
      sharding=rules,
    )

  def test_progress_counts_all_bytes(self):
    self._write()
    seen = []
    self._load(progress=lambda *args: seen.append(args))
    done, totals, names = zip(*seen, strict=True)
    self.assertEqual(done[-1], totals[0])
    self.assertLen(set(totals), 1)
    self.assertEqual(sorted(done), list(done))
    self.assertIn(_UP, names)

  def _refuses(self, message, **kwargs):
    with self.assertRaisesRegex(ValueError, message) as caught:
      self._load(**kwargs)
    self.assertNotIn("\n", str(caught.exception))

  def test_no_fp8(self):
    checkpoints.write(self.folder)
    self._refuses(
      "no tensor is FP8, as dtype='fp8' expects; load it as bfloat16",
      dtype="fp8",
    )

  def test_unknown_layout(self):
    self._refuses("layout='flat': expected stacked or layers", layout="flat")

  @parameterized.named_parameters(
    (
      "no_scales",
      lambda t: t.pop(_UP + name_map.SCALES),
      f"'{_UP}' is F8_E4M3, and its scales '{_UP}_scale_inv' are missing",
    ),
    (
      "scales_of_nothing",
      lambda t: t.update({_UP: t[_UP].astype(ml_dtypes.bfloat16)}),
      f"'{_UP}_scale_inv' are scales of a tensor that is not F8_E4M3",
    ),
    (
      "misshapen_scales",
      lambda t: t.update({_UP + name_map.SCALES: np.ones((2, 3), np.float32)}),
      r"has shape \[2, 3\]: expected \[2, 2\], one for every 128 x 128 of "
      r"\[136, 160\]",
    ),
    (
      "half_scales",
      lambda t: t.update(
        {_UP + name_map.SCALES: np.ones((2, 2), ml_dtypes.bfloat16)}
      ),
      f"'{_UP}_scale_inv' is BF16: expected F32 or F8_E8M0",
    ),
    (
      "fp8_head",
      lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(_FP8)}),
      "'lm_head.weight' is F8_E4M3: expected F32, BF16, F16, because only lin",
    ),
    (
      "misshapen_values",
      lambda t: t.update({_UP: t[_UP].T.copy()}),
      r"has shape \[160, 136\]: config.json says \[136, 160\]",
    ),
    (
      "other_fp8",
      lambda t: t.update({_UP: t[_UP].astype(ml_dtypes.float8_e5m2)}),
      f"'{_UP}' is F8_E5M2: expected F32, BF16, F16, or F8_E4M3 with scales",
    ),
    (
      "nan",
      lambda t: t[_UP].put(7, np.nan),
      rf"'{_UP}' has 1 value\(s\) that are not finite as float32",
    ),
    (
      "nan_scale",
      lambda t: t[_UP + name_map.SCALES].put(1, np.nan),
      rf"'{_UP}_scale_inv' has 1 scale\(s\) that are not finite and positive",
    ),
    (
      "zero_scale",
      lambda t: t[_UP + name_map.SCALES].put([0, 1], 0),
      "has 2 scale",
    ),
    (
      "negative_scale",
      lambda t: t[_UP + name_map.SCALES].put(0, -1),
      "has 1 scale",
    ),
    (
      "overflow",
      lambda t: t[_UP + name_map.SCALES].put(0, 3e38),
      rf"'{_UP}' has \d+ value\(s\) that are not finite as float32",
    ),
  )
  def test_refuses(self, change, message):
    self._write()
    checkpoints.edit(self.folder, change)
    self._refuses(message)

  def test_nan_of_exponents(self):
    self._write(scale_format="e8m0")
    checkpoints.edit(
      self.folder, lambda t: t[_UP + name_map.SCALES].put(0, np.nan)
    )
    self._refuses("has 1 scale", dtype="fp8")

  def test_too_large_for_float16(self):
    self._write()
    checkpoints.edit(
      self.folder, lambda t: t[_UP + name_map.SCALES].put(0, 1e4)
    )
    self._load(dtype="bfloat16")
    self._refuses("that are not finite as float16", dtype="float16")

  def test_without_quantization_config(self):
    self._write()
    checkpoints.edit(self.folder, quantization_config=None)
    self._refuses("is F8_E4M3, and config.json has no quantization_config")

  def test_saving_other_scales(self):
    self._write()
    config, variables = convert.load(self.folder, dtype="fp8")
    for scale_format in ("ue8m0", "e8m0"):
      with self.assertRaisesRegex(
        ValueError, f"not powers of two: expected them for .*='{scale_format}'"
      ):
        convert.save(
          self.root / "again",
          config,
          variables,
          dtype="fp8",
          scale_format=scale_format,
        )
    with self.assertRaisesRegex(
      ValueError, "scale_format='ue8m0': only FP8 has scales"
    ):
      convert.save(self.root / "x", config, variables, scale_format="ue8m0")


if __name__ == "__main__":
  absltest.main()
