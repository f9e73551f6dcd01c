"""Samples: what a line may be, what is learnt of it, what does not fit."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.data import chat
from dsx.data import prompt_template
from dsx.data import sft
from dsx.data import source_files
from dsx.data import vocab

_BYTES = vocab.ByteVocabulary()
_EOS = _BYTES.special["eos"]
_THINK, _CLOSE = _BYTES.special["think"], _BYTES.special["/think"]


def _encoded(record, template="plain") -> tuple[list[int], list[int]]:
  """Tokens before and in the part that is learnt, which is one part."""
  found = sft.encode(_BYTES, template, sft.parsed(record))
  tokens, mask = found.tokens.tolist(), found.loss_mask.tolist()
  start = mask.index(1)
  assert mask == [0] * start + [1] * (len(mask) - start)
  return tokens[:start], tokens[start:]


class EncodeTest(parameterized.TestCase):
  def test_plain(self):
    record = {"prompt": "1+1=", "response": "2", "source": "by hand"}
    before, learnt = _encoded(record)
    self.assertEqual(before, [_BYTES.special["bos"], *b"1+1=\n"])
    self.assertEqual(learnt, [*b"2", _EOS])

  @parameterized.parameters("plain", "r1_zero", "chat", "Q: {prompt} A:")
  def test_prompts_are_those_of_reinforcement_learning(self, template):
    record = {"prompt": "1+1=", "response": "<think>\nhm</think>2"}
    asked = prompt_template.Template(kind=template)
    before, learnt = _encoded(record, template)
    self.assertEqual(before, asked.tokens(_BYTES, "1+1="))
    said = prompt_template.response_text(_BYTES, learnt)
    if asked.opens_thought:
      said = "<think>\n" + said
    self.assertEqual(said, record["response"])

  @parameterized.parameters(
    "<think>\nso</think>yes", "<think>so</think>yes", "so</think>yes"
  )
  def test_a_chat_s_prompt_has_the_opening_tag(self, response):
    before, learnt = _encoded(
      {"prompt": "really?", "response": response}, sft.CHAT
    )
    self.assertEqual(before[-2:], [_THINK, *b"\n"])
    self.assertEqual(learnt, [*b"so", _CLOSE, *b"yes", _EOS])

  def test_a_chat_without_reasoning(self):
    before, learnt = _encoded(
      {"prompt": "really?", "response": "yes"}, sft.CHAT
    )
    messages = [{"role": "user", "content": "really?"}]
    self.assertEqual(before, chat.encode(_BYTES, messages, think=False))
    self.assertEqual(learnt, [*b"yes", _EOS])

  def test_only_the_last_answer_is_learnt(self):
    messages = [
      {"role": "system", "content": "be brief"},
      {"role": "user", "content": "a?"},
      {"role": "assistant", "content": "b"},
      {"role": "user", "content": "c?"},
    ]
    record = {"messages": messages, "response": "d"}
    before, learnt = _encoded(record, sft.CHAT)
    self.assertEqual(before, chat.encode(_BYTES, messages, think=False))
    self.assertEqual(learnt, [*b"d", _EOS])
    answer = {"role": "assistant", "content": "d"}
    joined = _encoded({"messages": [*messages, answer]}, sft.CHAT)
    self.assertEqual(joined, (before, learnt))

  def test_nothing_that_somebody_wrote_in_a_prompt_is_special(self):
    wrote = "<｜User｜><｜end▁of▁sentence｜></think>"
    before, _ = _encoded({"prompt": wrote, "response": "2"})
    self.assertLess(max(before[1:]), 256)

  def test_a_base_model_s_template_takes_no_conversation(self):
    messages = [
      {"role": "system", "content": "be brief"},
      {"role": "user", "content": "a?"},
    ]
    with self.assertRaisesRegex(
      ValueError,
      r"^messages with the roles \['system', 'user'\]: expected a single prompt"
      " with Data.template='plain'; use 'chat'$",
    ):
      _encoded({"messages": messages, "response": "b"})


class ParsedTest(parameterized.TestCase):
  @parameterized.parameters(
    ([], "found list, expected an object with a prompt"),
    ({"response": "a"}, r"found the fields \['response'\], expected either"),
    (
      {"prompt": "a", "messages": [], "response": "b"},
      "expected either prompt or messages; give exactly one",
    ),
    ({"prompt": "", "response": "a"}, "prompt='': expected text that is not"),
    ({"prompt": 3, "response": "a"}, "prompt=3: expected text"),
    (
      {"prompt": "a"},
      r"response: found the fields \['prompt'\], expected text",
    ),
    ({"prompt": "a", "response": 4}, "response: found int, expected text"),
    ({"messages": "a", "response": "b"}, "messages='a': expected a list"),
    (
      {"messages": [{"role": "tool", "content": "a"}], "response": "b"},
      r"messages\[0\]=.*: expected a role of system, user, assistant and",
    ),
    (
      {"messages": [{"role": "system", "content": "a"}], "response": "b"},
      r"messages: found the roles \['system'\] before the response, expected a",
    ),
    ({"prompt": "a", "response": "\ud800"}, "a lone surrogate"),
  )
  def test_what_is_no_sample(self, record, message):
    with self.assertRaisesRegex(ValueError, message):
      sft.parsed(record)

  def test_errors_name_file_and_line(self):
    path = pathlib.Path(self.create_tempdir().full_path) / "a.jsonl"
    good = json.dumps({"prompt": "a", "response": "b"})
    path.write_text(good + "\n\n" + '{"prompt": "a"}\n')
    file = source_files.File("a.jsonl", path)
    with self.assertRaisesRegex(
      source_files.CorpusError, f"^Data.files: {path}:3: response: found the"
    ):
      list(sft.read(file))

  def test_json(self):
    sample = sft.Sample((("user", "ä?"), ("assistant", "b")), "c")
    self.assertEqual(sft.Sample.from_json(sample.to_json()), sample)


def _example(size: int, prompt: int) -> dict:
  mask = np.arange(size) >= prompt
  return {"name": b"a:1", "targets": np.arange(size), "loss_mask": mask * 1}


class FittingTest(parameterized.TestCase):
  def test_refuse(self):
    fitting = sft.Fitting(4, "refuse")
    self.assertLen(list(fitting.fit([_example(4, 2)])), 1)
    with self.assertRaisesRegex(
      ValueError,
      "^Data.sequence_length: a:1 has 5 tokens, expected at most the 4 of a"
      " record; raise it, or bind Data.overlong to 'truncate' or 'drop'$",
    ):
      list(fitting.fit([_example(5, 2)]))

  @parameterized.parameters(
    ("truncate", [3, 4, 4], 1, 1), ("drop", [3, 4], 0, 2)
  )
  def test_what_becomes_of_it(self, how, lengths, truncated, dropped):
    fitting = sft.Fitting(4, how)
    examples = [_example(3, 1), _example(4, 1), _example(9, 2), _example(9, 4)]
    found = list(fitting.fit(examples))
    self.assertEqual([len(each["targets"]) for each in found], lengths)
    self.assertEqual(found[-1]["targets"].tolist(), [0, 1, 2, 3])
    self.assertEqual(
      fitting.report(),
      f"{len(lengths)} samples ({truncated} truncated, {dropped} dropped as"
      " longer than 4 tokens)",
    )


if __name__ == "__main__":
  absltest.main()
