"""Samples for fine-tuning, from files of JSON lines to records."""

import dataclasses
import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import export
from dsx.data import pipeline
from dsx.data import prepare
from dsx.data import sft
from dsx.data import source_files
from dsx.data import vocab

_BYTES = vocab.ByteVocabulary()


def _lines(n: int, responses: int = 2) -> list[dict]:
  return [
    {"prompt": f"{i}?", "response": f"{i * i}" + "!" * j, "rating": i}
    for i in range(n)
    for j in range(responses)
  ]


class PrepareSamplesTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)
    self.write(_lines(100))
    self.data = pipeline.Data(
      task="sft",
      template="plain",
      sequence_length=32,
      files=(str(self.root / "a.jsonl"),),
      cache_dir=str(self.root / "cache"),
    )

  def write(self, lines, name="a.jsonl"):
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (self.root / name).write_text(text)

  def prepared(self, **changes):
    data = dataclasses.replace(self.data, **changes)
    said = []
    prepare.prepare(data, report=said.append)
    return data, said

  def test_records_hold_the_samples_and_what_is_learnt(self):
    data, said = self.prepared()
    found: dict[str, list] = {}
    learnt = 0
    for split in pipeline.SPLITS:
      opened = pipeline.open_split(data, split, shuffle=False)
      opened.verify()
      rows = opened.rows(np.arange(len(opened)))
      self.assertEqual(set(rows), {"tokens", "segment_ids", "loss_mask"})
      parts = found[split] = []
      for tokens, ids, mask in zip(*rows.values(), strict=True):
        for segment in range(1, ids.max() + 1):
          here = ids == segment
          parts.append((tokens[here].tolist(), mask[here].tolist()))
        np.testing.assert_array_equal(tokens[ids == 0], _BYTES.special["pad"])
      metadata = opened.metadata
      self.assertEqual(metadata["documents"], len(parts))
      self.assertEqual(metadata["tokens"], int(rows["loss_mask"].sum()))
      learnt += metadata["bytes"]
    expected = []
    for line in _lines(100):
      made = sft.encode(_BYTES, "plain", sft.parsed(line))
      expected.append((made.tokens.tolist(), made.loss_mask.tolist()))
    both = found["train"] + found["validation"]
    self.assertEqual(sorted(both), sorted(expected))
    self.assertEqual(learnt, sum(len(x["response"]) for x in _lines(100)))
    self.assertRegex(said[1], r"^train: 1\d\d samples \(0 truncated, 0 dropped")

  def test_answers_to_one_prompt_are_on_one_side(self):
    corpus = pipeline.corpus_of(self.data)
    survey = corpus.survey()
    prompts = {
      split: [
        sft.Sample.from_json(document.text).messages
        for document in corpus.split(split, survey)
      ]
      for split in pipeline.SPLITS
    }
    self.assertLen(prompts["train"] + prompts["validation"], 200)
    self.assertEmpty(set(prompts["train"]) & set(prompts["validation"]))
    self.assertLen(prompts["validation"], 2 * len(set(prompts["validation"])))

  def test_what_is_too_long(self):
    self.write([*_lines(50), {"prompt": "x", "response": "y" * 99}])
    with self.assertRaisesRegex(
      export.PreparationError,
      r"^Data.sequence_length: a.jsonl:101 has 103 tokens, expected at most the"
      " 33 of a record; raise it, or bind Data.overlong to 'truncate' or"
      " 'drop'$",
    ):
      self.prepared()
    for how, counts in (("truncate", (1, 0)), ("drop", (0, 1))):
      data, said = self.prepared(overlong=how)
      entries = [
        pipeline.open_split(data, split, shuffle=False).metadata
        for split in pipeline.SPLITS
      ]
      found = tuple(
        sum(entry[name] for entry in entries)
        for name in ("truncated", "dropped")
      )
      self.assertEqual(found, counts)
      self.assertIn(
        f"{counts[0]} truncated, {counts[1]} dropped", " ".join(said)
      )

  def test_name_is_by_content_and_by_what_matters(self):
    name = pipeline.prepared_directory(self.data)
    same = dataclasses.replace(self.data, fim_rate=0.5, text_field="x")
    self.assertEqual(pipeline.prepared_directory(same), name)
    other = dataclasses.replace(self.data, template="r1_zero")
    self.assertNotEqual(pipeline.prepared_directory(other), name)
    self.write(_lines(101))
    self.assertNotEqual(pipeline.prepared_directory(self.data), name)

  def test_other_tasks_know_nothing_of_samples(self):
    plain = pipeline.Data(sequence_length=8)
    self.assertNotIn("template", plain.described())
    self.assertNotIn("overlong", plain.described())
    self.assertIn("template", self.data.described())

  def test_a_mixture(self):
    self.write(
      [{"prompt": f"say {i}", "response": "so"} for i in range(90)], "b.jsonl"
    )
    data, _ = self.prepared(
      task="mixture",
      mixture=(("sft", 3.0), ("sft", 1.0, str(self.root / "b.jsonl"))),
    )
    source = pipeline.open_split(data, "train", shuffle=True)
    rows = source.rows(np.arange(200))
    self.assertEqual(set(rows), {"tokens", "segment_ids", "loss_mask"})
    said = [b"say" in bytes(x % 256 for x in row) for row in rows["tokens"]]
    self.assertBetween(sum(said), 45, 55)

  @parameterized.parameters(
    (
      "overlong",
      "cut",
      "Data.overlong: got 'cut', expected one of refuse, trun",
    ),
    (
      "template",
      "zero",
      "kind='zero': expected r1_zero, chat, plain or a text",
    ),
  )
  def test_switches(self, field, value, message):
    with self.assertRaisesRegex(ValueError, message):
      dataclasses.replace(self.data, **{field: value})

  def test_a_template_that_does_not_fit_the_samples(self):
    system = [
      {"role": "system", "content": "a"},
      {"role": "user", "content": "b"},
    ]
    self.write([*_lines(50), {"messages": system, "response": "c"}])
    with self.assertRaisesRegex(
      export.PreparationError,
      r"a.jsonl:101: messages with the roles \['system', 'user'\]: expected a",
    ):
      self.prepared()

  def test_a_file_that_holds_no_samples(self):
    (self.root / "a.jsonl").write_text('{"text": "a"}\n')
    with self.assertRaisesRegex(
      source_files.CorpusError,
      r"a.jsonl:1: found the fields \['text'\], expect",
    ):
      self.prepared()


if __name__ == "__main__":
  absltest.main()
