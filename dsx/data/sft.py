"""Samples for supervised fine-tuning: a prompt, and the response to learn.

A file has one JSON object a line:

  {"prompt": "7 + 5", "response": "<think>...</think> 12", ...}
  {"messages": [{"role": "user", "content": "7 + 5"}], "response": "12", ...}
  {"messages": [{"role": "user", ...}, {"role": "assistant", ...}], ...}

In the third form the last message is the response. Whatever else a line has
(where it is from, what it scored) stays in the file; that file's content is
part of the prepared data set's name.

A sample becomes the prompt's tokens, the response's, and eos; the loss is on
the response and eos. Prompts and responses are put as reinforcement learning
puts them (`prompt_template`), so that one goes on from the other. With the
template 'chat', a response that has </think>, or begins with <think>, was
reasoned: its prompt ends with <think> and a line break, which the response
then lacks. Any other response is asked for without reasoning.

Packing (`packing.pack_samples`) keeps samples whole, and segment ids keep them
apart. DeepSeek-V3 report, section 5.1: "adopt a sample masking strategy to
ensure that these examples remain isolated and mutually invisible".
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import numpy as np

from dsx.data import chat
from dsx.data import json_lines
from dsx.data import prompt_template
from dsx.data import source_files
from dsx.data import special_tokens
from dsx.data import vocab

CHAT = "chat"
OVERLONG = ("refuse", "truncate", "drop")

_OPEN = special_tokens.STRINGS["think"]
_CLOSE = special_tokens.STRINGS["/think"]


class SampleError(ValueError):
  """A sample that cannot be taken; the message says which, and why."""


@dataclasses.dataclass(frozen=True)
class Sample:
  """A conversation, and the answer to its last message.

  Attributes:
    messages: (role, content) of each message before the response.
    response: what is learnt, without eos.
  """

  messages: tuple[tuple[str, str], ...]
  response: str

  @property
  def prompt_key(self) -> str:
    """The same for all responses to one prompt."""
    return json.dumps(self.messages)

  def to_json(self) -> str:
    """Both fields in one line."""
    return json.dumps([self.messages, self.response])

  @classmethod
  def from_json(cls, text: str) -> "Sample":
    """The inverse of `to_json`."""
    messages, response = json.loads(text)
    return cls(tuple(map(tuple, messages)), response)


@dataclasses.dataclass(frozen=True)
class Encoded:
  """A sample's tokens.

  Attributes:
    tokens: int32 [n], prompt, response, eos.
    loss_mask: int32 [n], 1 for the response and eos.
  """

  tokens: np.ndarray
  loss_mask: np.ndarray


def read(file: source_files.File) -> Iterator[tuple[str, Sample]]:
  """Yields (name of the line, sample) of a file.

  Raises:
    source_files.CorpusError: a line is no sample; names file, line and field.
  """
  for where, name, record in json_lines.read(file):
    try:
      yield name, parsed(record)
    except ValueError as error:
      raise source_files.CorpusError(f"Data.files: {where}: {error}") from None


def parsed(record: Any) -> Sample:
  """The sample of one line.

  Raises:
    SampleError: it is not of the kind that the module describes.
  """
  if not isinstance(record, dict):
    raise SampleError(
      f"found {type(record).__name__}, expected an object with a prompt (or "
      "messages) and a response; write one object a line"
    )
  messages = _messages(record)
  response = record.get("response")
  if response is None and messages and messages[-1][0] == "assistant":
    *messages, (_, response) = messages
  if not isinstance(response, str):
    found = (
      type(response).__name__
      if "response" in record
      else f"the fields {sorted(record)}"
    )
    raise SampleError(
      f"response: found {found}, expected text, or an assistant's message as "
      "the last of messages; add the answer that is to be learnt"
    )
  if not messages or messages[-1][0] != "user":
    raise SampleError(
      f"messages: found the roles {[role for role, _ in messages]} before the "
      "response, expected a user's message as the last of them; add it"
    )
  vocab.utf8(response)
  return Sample(tuple(messages), response)


def _messages(record: Mapping) -> list[tuple[str, str]]:
  if ("prompt" in record) == ("messages" in record):
    raise SampleError(
      f"found the fields {sorted(record)}, expected either prompt or messages; "
      "give exactly one of them"
    )
  if "prompt" in record:
    prompt = record["prompt"]
    if not isinstance(prompt, str) or not prompt:
      raise SampleError(
        f"prompt={prompt!r}: expected text that is not empty; give a string"
      )
    vocab.utf8(prompt)
    return [("user", prompt)]
  messages = record["messages"]
  if not isinstance(messages, list):
    raise SampleError(
      f"messages={messages!r}: expected a list of a role and a content each; "
      "give one"
    )
  found = []
  for i, message in enumerate(messages):
    valid = (
      isinstance(message, dict)
      and message.get("role") in chat.ROLES
      and isinstance(message.get("content"), str)
    )
    if not valid:
      raise SampleError(
        f"messages[{i}]={message!r}: expected a role of "
        f"{', '.join(chat.ROLES)} and a content that is text; mend it"
      )
    vocab.utf8(message["content"])
    found.append((message["role"], message["content"]))
  return found


def encode(
  vocabulary: vocab.Vocabulary, template: str, sample: Sample
) -> Encoded:
  """The tokens of a sample; see the module.

  Args:
    vocabulary: of the model.
    template: 'chat', or a kind of `prompt_template.Template`.
    sample: what to encode.

  Raises:
    ValueError: the template cannot put the sample's messages, or the
      vocabulary lacks its tokens.
  """
  if template == CHAT:
    prompt, text = _chat(vocabulary, sample)
  else:
    if [role for role, _ in sample.messages] != ["user"]:
      raise SampleError(
        f"messages with the roles {[role for role, _ in sample.messages]}: "
        f"expected a single prompt with Data.template={template!r}; use 'chat'"
      )
    asked = prompt_template.Template(kind=template)
    prompt = asked.tokens(vocabulary, sample.messages[0][1])
    text = sample.response
  response = prompt_template.response_tokens(vocabulary, text)
  answer = [*response, vocabulary.special["eos"]]
  mask = np.zeros(len(prompt) + len(answer), np.int32)
  mask[len(prompt) :] = 1
  return Encoded(np.array([*prompt, *answer], np.int32), mask)


def _chat(
  vocabulary: vocab.Vocabulary, sample: Sample
) -> tuple[list[int], str]:
  """The prompt in DeepSeek's chat format, and what follows it."""
  messages = [
    {"role": role, "content": content} for role, content in sample.messages
  ]
  said = sample.response
  think = said.startswith(_OPEN) or _CLOSE in said
  if think:
    # The prompt has the opening tag and a line break already.
    said = said.removeprefix(_OPEN).removeprefix("\n")
  return chat.encode(vocabulary, messages, think=think), said


@dataclasses.dataclass
class Fitting:
  """What became of the samples that did not fit into a record.

  Attributes:
    length: tokens that a record has room for.
    overlong: 'refuse' to go on; 'truncate' the response at its end, eos with
      it; or 'drop' the sample.
    taken, truncated, dropped: how many samples; those truncated are taken.
  """

  length: int
  overlong: str
  taken: int = 0
  truncated: int = 0
  dropped: int = 0

  def fit(self, examples: Iterable[Mapping]) -> Iterator[dict[str, Any]]:
    """Yields what is taken of examples with 'name', 'targets', 'loss_mask'.

    A sample whose prompt alone fills a record has nothing to learn from: it
    is dropped under 'truncate', too.

    Raises:
      SampleError: a sample is too long, and that is refused.
    """
    for example in examples:
      tokens, mask = example["targets"], example["loss_mask"]
      if len(tokens) > self.length:
        self._refuse(example)
        tokens, mask = tokens[: self.length], mask[: self.length]
        if self.overlong == "drop" or not mask.any():
          self.dropped += 1
          continue
        self.truncated += 1
      self.taken += 1
      yield {**example, "targets": tokens, "loss_mask": mask}

  def _refuse(self, example: Mapping) -> None:
    if self.overlong != "refuse":
      return
    name = example.get("name", b"a sample")
    raise SampleError(
      f"Data.sequence_length: {name.decode()} has {len(example['targets'])} "
      f"tokens, expected at most the {self.length} of a record; raise it, or "
      "bind Data.overlong to 'truncate' or 'drop'"
    )

  def report(self) -> str:
    """What a person should know, in a few words."""
    return (
      f"{self.taken} samples ({self.truncated} truncated, {self.dropped} "
      f"dropped as longer than {self.length} tokens)"
    )
