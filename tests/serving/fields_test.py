"""Bodies are JSON objects, and each field is what it should be."""

import json

from absl.testing import absltest
from absl.testing import parameterized

from dsx.serving import fields
from dsx.serving import refusal


class ParseTest(parameterized.TestCase):
  @parameterized.parameters(
    (b"", "body: not JSON (Expecting value at character 0)"),
    (b'{"a":1', "body: not JSON"),
    (b"\xff{}", "body: byte 0 is not UTF-8"),
    (b"[]", "body: got [], expected a JSON object"),
    (b'"text"', "body: got 'text', expected a JSON object"),
    (b"null", "body: got None, expected a JSON object"),
    (b'{"a": NaN}', "body: got NaN, which is not JSON"),
    (b'{"a": -Infinity}', "body: got -Infinity, which is not JSON"),
    (b'{"a": ' + b"1" * 5000 + b"}", "body: a number of 5000 digits"),
    (b"[" * 500_000, "body: nested too deeply"),
    (b'{"a":' * 200_000, "body: nested too deeply"),
    (b'{"a": "\x00"}', "body: not JSON (Invalid control character"),
  )
  def test_what_is_no_body(self, body, message):
    with self.assertRaises(refusal.Refusal) as caught:
      fields.parse(body)
    self.assertStartsWith(str(caught.exception), message)
    self.assertEqual(caught.exception.status, 400)
    self.assertEqual(caught.exception.code, "invalid_json")

  def test_null_is_nothing(self):
    read = fields.parse(b'{"n": null}')
    self.assertEqual(read.integer("n", 3, 1, 9), 3)
    read.finish()

  def test_unknown_fields(self):
    read = fields.parse(b'{"max_token": 3}')
    read.integer("max_tokens", 16, 0, 99)
    with self.assertRaisesRegex(refusal.Refusal, "did you mean 'max_tokens'"):
      read.finish()
    read = fields.parse(json.dumps({"\ud800": 1}).encode())
    with self.assertRaises(refusal.Refusal) as caught:
      read.finish()
    # It can be written down again.
    json.dumps(caught.exception.body).encode("utf-8")
    self.assertIsNone(caught.exception.param)


class FieldsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("integer", (None, 1, 8), 0),
    ("integer", (None, 1, 8), 9),
    ("integer", (None, 1, 8), True),
    ("integer", (None, 1, 8), 1.5),
    ("integer", (None, 1, 8), "1"),
    ("integer", (None, 1, 8), 10**399),
    ("number", (0.0, 0.0, 2.0), -0.1),
    ("number", (0.0, 0.0, 2.0), 1e999),
    ("number", (0.0, 0.0, 2.0), 10**399),
    ("number", (0.0, 0.0, 2.0), True),
    ("number", (0.0, 0.0, 2.0), "1"),
    ("boolean", (), 1),
    ("boolean", (), "true"),
    ("text", (), 5),
    ("text", (), None),
    ("text", (), "a\udfff"),
    ("strings", (2,), ""),
    ("strings", (2,), ["a", ""]),
    ("strings", (2,), ["a", "b", "c"]),
    ("strings", (2,), [1]),
    ("strings", (2,), {"a": 1}),
    ("strings", (2,), ["\ud800"]),
    ("integers", (2, 9), 1),
    ("integers", (2, 9), [1, 2, 3]),
    ("integers", (2, 9), [10]),
    ("integers", (2, 9), [True]),
    ("object", (), []),
  )
  def test_refused(self, kind, arguments, value):
    read = fields.Fields({"x": value}, "outer")
    with self.assertRaises(refusal.Refusal) as caught:
      getattr(read, kind)("x", *arguments)
    self.assertStartsWith(str(caught.exception), "outer.x: got ")
    self.assertLess(len(str(caught.exception)), 200)
    self.assertEqual(caught.exception.param, "outer.x")
    str(caught.exception).encode("ascii")

  def test_taken(self):
    read = fields.Fields(
      {"i": 3.0, "f": 1, "b": True, "t": "é", "s": "x", "ids": [1, 2]}
    )
    self.assertEqual(read.integer("i", None, 1, 8), 3)
    self.assertIsInstance(read.integer("i", None, 1, 8), int)
    self.assertEqual(read.number("f", 0.0, 0.0, 2.0), 1.0)
    self.assertTrue(read.boolean("b"))
    self.assertEqual(read.text("t"), "é")
    self.assertEqual(read.strings("s", 1), ("x",))
    self.assertEqual(read.integers("ids", 2, 9), (1, 2))
    read.finish()


if __name__ == "__main__":
  absltest.main()
