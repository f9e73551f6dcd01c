"""`quantization_config`: DeepSeek's three forms, and all others refused."""

from absl.testing import absltest
from absl.testing import parameterized

from dsx.convert import quantization

_V3 = {
  "activation_scheme": "dynamic",
  "fmt": "e4m3",
  "quant_method": "fp8",
  "weight_block_size": [128, 128],
}


class QuantizationTest(parameterized.TestCase):
  def test_v3_and_v3_1(self):
    self.assertEqual(quantization.made("float32"), _V3)
    v3_1 = {**_V3, "scale_fmt": "ue8m0"}
    for scale_format in ("ue8m0", "e8m0"):
      self.assertEqual(quantization.made(scale_format), v3_1)
    for found in (_V3, v3_1, {**_V3, "modules_to_not_convert": ["lm_head"]}):
      fields = {"quantization_config": found}
      self.assertEqual(quantization.read("config.json", fields), found)

  @parameterized.parameters({}, {"quantization_config": None})
  def test_none(self, **fields):
    self.assertIsNone(quantization.read("config.json", fields))

  @parameterized.parameters(
    (3, "=3: expected an object or null"),
    ({**_V3, "quant_method": "awq"}, ": quant_method='awq': expected 'fp8'"),
    ({}, ": quant_method=None: expected 'fp8'"),
    ({**_V3, "fmt": "e5m2"}, ": fmt='e5m2': expected 'e4m3'"),
    (
      {**_V3, "weight_block_size": [64, 128]},
      r": weight_block_size=\[64, 128\]: expected \[128, 128\]",
    ),
    ({**_V3, "scale_fmt": "e4m3"}, ": scale_fmt='e4m3': expected 'ue8m0' or "),
  )
  def test_refuses(self, found, message):
    with self.assertRaisesRegex(
      ValueError, f"^config.json: quantization_config{message}"
    ) as caught:
      quantization.read("config.json", {"quantization_config": found})
    self.assertNotIn("\n", str(caught.exception))

  def test_refuses_formats(self):
    with self.assertRaisesRegex(
      ValueError, "scale_format='e4m3': expected float32, ue8m0, e8m0"
    ):
      quantization.made("e4m3")


if __name__ == "__main__":
  absltest.main()
