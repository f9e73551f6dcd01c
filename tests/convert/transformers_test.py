"""Checkpoints that transformers made and loads, in bfloat16 and FP8.

FP8 is made by a few lines of torch here, independent of dsx; what it stands
for is what transformers computes with the same numbers dequantised by torch.
"""

import os
import pathlib
import tempfile

# Before torch is imported: this test must not reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np
import safetensors.torch
import torch
from transformers import modeling_layers

from dsx.convert import conversion
from dsx.convert import deepseek as convert
from dsx.convert import huggingface_source
from tests.convert import checkpoints
from tests.models import golden_test as golden

# Even cases of the golden models are V3-shaped, odd ones V2-shaped.
_V3, _V2 = 6, 1
_SIZES = {"hidden_size": 192, "moe_intermediate_size": 136}
_TOLERANCE = 1e-4


def _is_linear(name: str) -> bool:
  parts = name.split(".")
  return "_proj" in parts[-2] and parts[-2] != "eh_proj"


def _quantise(w):
  """(values, scales, dequantised) of one matrix."""
  rows, columns = w.shape
  pad = (0, -columns % 128, 0, -rows % 128)
  tiles = torch.nn.functional.pad(w.float(), pad).unflatten(0, (-1, 128))
  tiles = tiles.unflatten(2, (-1, 128)).transpose(1, 2)  # [R, C, 128, 128]
  scales = tiles.abs().amax((2, 3)).clamp(min=1e-12) / 448
  tiles = (tiles / scales[:, :, None, None]).to(torch.float8_e4m3fn)

  def whole(t):
    return t.transpose(1, 2).flatten(2, 3).flatten(0, 1)[:rows, :columns]

  dequantised = whole(tiles.float() * scales[:, :, None, None])
  return whole(tiles).contiguous(), scales, dequantised


class TransformersTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    torch.set_num_threads(2)

  def setUp(self):
    super().setUp()
    temporary = tempfile.TemporaryDirectory()
    self.addCleanup(temporary.cleanup)
    self.root = pathlib.Path(temporary.name)

  def _model(self, case: int):
    """A model whose numbers bfloat16 holds, and its folder `bf16`."""
    model = golden._make(case, **_SIZES, rms_norm_eps=1e-6)
    for tensor in model.parameters():
      tensor.copy_(tensor.bfloat16())
    drafter = None
    folder = str(self.root / "bf16")
    if case == _V3:
      model.config.num_mtp_layers = 1
      drafter = modeling_layers.MtpModel(model, 1).eval()
      drafter.requires_grad_(False)
      golden._randomise(drafter.layers, 7)
      golden._save_with_mtp(folder, model, drafter)
    else:
      model.save_pretrained(folder)
    path = self.root / "bf16" / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors = {
      name: t if name.endswith("e_score_correction_bias") else t.bfloat16()
      for name, t in tensors.items()
    }
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return model, tensors

  def _quantised(self, model, tensors, exponents: bool) -> None:
    """Writes `fp8`, and gives the model the numbers that it stands for."""
    written, meant = {}, {}
    for name, tensor in tensors.items():
      written[name] = meant[name] = tensor
      if _is_linear(name):
        values, scales, meant[name] = _quantise(tensor)
        if exponents:
          scales = torch.exp2(torch.ceil(torch.log2(scales)))
          values, meant[name] = self._with_scales(tensor, scales)
          scales = scales.to(torch.float8_e8m0fnu)
        written[name] = values
        written[name + "_scale_inv"] = scales
    (self.root / "fp8").mkdir()
    safetensors.torch.save_file(written, self.root / "fp8/model.safetensors")
    (self.root / "fp8/config.json").write_bytes(
      (self.root / "bf16/config.json").read_bytes()
    )
    quantization = {
      "activation_scheme": "dynamic",
      "fmt": "e4m3",
      "quant_method": "fp8",
      "weight_block_size": [128, 128],
    }
    if exponents:  # as V3.1 says
      quantization["scale_fmt"] = "ue8m0"
    checkpoints.edit(self.root / "fp8", quantization_config=quantization)
    self._give(model, meant)

  def _with_scales(self, w, scales):
    expanded = scales.repeat_interleave(128, 0).repeat_interleave(128, 1)
    expanded = expanded[: w.shape[0], : w.shape[1]]
    values = (w.float() / expanded).to(torch.float8_e4m3fn)
    return values, values.float() * expanded

  def _give(self, model, meant) -> None:
    """Loads tensors of a file into a model, through its own loader."""
    folder = self.root / "meant"
    model.save_pretrained(folder)
    names = safetensors.torch.load_file(folder / "model.safetensors")
    tensors = {name: meant[name].float().contiguous() for name in names}
    safetensors.torch.save_file(
      tensors, folder / "model.safetensors", {"format": "pt"}
    )
    again = type(model).from_pretrained(folder, attn_implementation="eager")
    model.load_state_dict(again.state_dict())

  def _tokens(self, model, case: int):
    return golden._stable_run(model, lambda t: model(t).logits, case)

  def _close(self, folder: str, tokens, theirs, **kwargs) -> None:
    config, variables = convert.load(self.root / folder, **kwargs)
    ours, _ = golden._apply(config, variables, tokens)
    self.assertBetween(theirs.std().item(), 0.3, 10.0)
    self.assertLess(np.abs(ours - theirs.numpy()).max(), _TOLERANCE)

  def _convert(self, source: str, target: str, **options) -> None:
    conversion.write(
      huggingface_source.find(self.root / source),
      self.root / target,
      conversion.Conversion(**options),
    )

  def _transformers_logits(self, model, folder: str, tokens):
    again, report = type(model).from_pretrained(
      self.root / folder,
      output_loading_info=True,
      attn_implementation="eager",
      dtype=torch.float32,
    )
    found = {k: v for k, v in report.items() if v}
    found.pop("unexpected_keys", None)  # MTP, which transformers drops
    self.assertEqual(found, {})
    with torch.no_grad():
      return again(torch.from_numpy(tokens)).logits

  @parameterized.parameters(_V3, _V2)
  def test_bfloat16(self, case):
    """Loaded, and exported by way of FP8 and of variables."""
    model, _ = self._model(case)
    tokens, theirs = self._tokens(model, case)
    self._close("bf16", tokens, theirs)
    self._convert("bf16", "float32", target_format="hf", dtype="float32")
    torch.testing.assert_close(
      self._transformers_logits(model, "float32", tokens), theirs
    )
    config, variables = convert.load(self.root / "bf16")
    self.assertEqual(config.num_nextn_predict_layers, int(case == _V3))
    convert.save(self.root / "saved", config, variables, dtype="bfloat16")
    torch.testing.assert_close(
      self._transformers_logits(model, "saved", tokens), theirs
    )
    self.assertEqual(
      checkpoints.content(self.root / "saved"),
      checkpoints.content(self.root / "bf16"),
    )

  @parameterized.product(case=(_V3, _V2), exponents=(False, True))
  def test_fp8(self, case, exponents):
    model, tensors = self._model(case)
    self._quantised(model, tensors, exponents)
    tokens, theirs = self._tokens(model, case)
    self._close("fp8", tokens, theirs)
    self._convert("fp8", "float32", target_format="hf", dtype="float32")
    torch.testing.assert_close(
      self._transformers_logits(model, "float32", tokens), theirs
    )
    # Bit for bit: folder to folder, and through variables.
    original = checkpoints.content(self.root / "fp8")
    self._convert("fp8", "copied", target_format="hf_fp8")
    self.assertEqual(checkpoints.content(self.root / "copied"), original)
    config, variables = convert.load(self.root / "fp8", dtype="fp8")
    convert.save(
      self.root / "saved",
      config,
      variables,
      dtype="fp8",
      scale_format="e8m0" if exponents else None,
    )
    self.assertEqual(checkpoints.content(self.root / "saved"), original)

  def test_quantises_as_torch_does(self):
    _, tensors = self._model(_V3)
    self._convert("bf16", "fp8", target_format="hf_fp8")
    ours = safetensors.torch.load_file(self.root / "fp8/model.safetensors")
    linear = [name for name in tensors if _is_linear(name)]
    self.assertLen(ours, len(tensors) + len(linear))
    for name, tensor in tensors.items():
      if not _is_linear(name):
        self.assertTrue(torch.equal(ours[name], tensor), name)
        continue
      values, scales, _ = _quantise(tensor)
      self.assertTrue(
        torch.equal(ours[name].view(torch.uint8), values.view(torch.uint8))
      )
      self.assertTrue(torch.equal(ours[name + "_scale_inv"], scales), name)


if __name__ == "__main__":
  absltest.main()
