"""Reasoning and answer of a reply, told apart while it streams.

DeepSeek-R1 reasons between <think> and </think> and answers after it. The
opening tag is the end of the prompt or the beginning of the reply; either tag
is a token of its own or, in vocabularies that have none, plain text that may be
spread over tokens.

What counts as a tag: <think> where the reply begins (or, opened by the prompt,
said once more), and the first </think> after it. In an answer a tag is text.
Line breaks around tags belong to neither side.
"""

from collections.abc import Iterable
from collections.abc import Sequence
from typing import NamedTuple

from dsx.data import special_tokens
from dsx.data import vocab as vocab_lib
from dsx.inference import text_stream

_OPEN = special_tokens.STRINGS["think"]
_CLOSE = special_tokens.STRINGS["/think"]
_BREAKS = "\r\n"

# Where in a reply one is.
_BEGIN, _OPENED, _REASONING, _CLOSED, _ANSWER = range(5)


class Part(NamedTuple):
  """A piece of a reply, or all of it.

  Attributes:
    reasoning: what lies between the tags.
    answer: what lies after them, or everything where there are none.
  """

  reasoning: str
  answer: str

  def __add__(self, other: "Part") -> "Part":  # type: ignore[override]
    """Joins reasoning to reasoning and answer to answer."""
    return Part(self.reasoning + other.reasoning, self.answer + other.answer)


_NOTHING = Part("", "")


class Reply:
  """One reply, to which tokens are pushed as to a `TextStream`.

  Attributes:
    reasoning: what was handed on of it so far.
    answer: what was handed on of it so far.
    thinking: whether it is reasoning at this moment.
    stopped: whether a stop string came, in the reasoning or in the answer.
  """

  def __init__(
    self,
    vocabulary: vocab_lib.Vocabulary,
    stop: Sequence[str] = (),
    *,
    opened: bool = False,
  ):
    """Starts an empty reply.

    Args:
      vocabulary: of the tokens.
      stop: strings that end the reply wherever they come; a tag that is a
        token of its own is no part of one.
      opened: the prompt ended with the opening tag.

    Raises:
      ValueError: a stop string is empty.
    """
    self._vocabulary = vocabulary
    self._stop = stop
    self._tags = {
      vocabulary.special[name]: tag
      for name, tag in (("think", _OPEN), ("/think", _CLOSE))
      if name in vocabulary.special
    }
    self._stream = text_stream.TextStream(vocabulary, stop)
    self._place = _OPENED if opened else _BEGIN
    self._held = ""
    self._said: list[Part] = []

  @property
  def reasoning(self) -> str:
    """Reasoning handed on so far."""
    return "".join(part.reasoning for part in self._said)

  @property
  def answer(self) -> str:
    """Answer handed on so far."""
    return "".join(part.answer for part in self._said)

  @property
  def thinking(self) -> bool:
    """Whether the reply is reasoning at this moment."""
    return self._place in (_OPENED, _REASONING)

  @property
  def stopped(self) -> bool:
    """Whether a stop string came."""
    return self._stream.stopped

  def push(self, token: int) -> Part:
    """Takes the next token; returns what became certain.

    Raises:
      ValueError: `token` lies outside the vocabulary.
    """
    tag = self._tags.get(int(token))
    if tag is None or self.stopped:
      return self._keep(self._split(self._stream.push(token)))
    certain = self._split(self._stream.finish())
    if not self.stopped:
      self._stream = text_stream.TextStream(self._vocabulary, self._stop)
      certain += self._met(tag)
    return self._keep(certain)

  def finish(self) -> Part:
    """Ends the reply; returns what was held back."""
    return self._keep(self._split(self._stream.finish(), last=True))

  def _keep(self, certain: Part) -> Part:
    if any(certain):
      self._said.append(certain)
    return certain

  def _met(self, tag: str) -> Part:
    """Goes past a tag that is a token; returns what it makes certain."""
    place = self._place
    if place in (_CLOSED, _ANSWER) or (place == _REASONING and tag == _OPEN):
      return _NOTHING
    held, self._held = self._held, ""
    if place == _BEGIN and held.strip():
      self._place = _ANSWER  # a half of a plain tag came before
      return Part("", held)
    if place != _REASONING:
      held = held.strip()
    self._place = _REASONING if held else _OPENED
    if tag == _CLOSE:
      self._place = _CLOSED
    return Part(held.rstrip(_BREAKS), "")

  def _split(self, new: str, *, last: bool = False) -> Part:
    """Takes new text, the `last` or not; returns what became certain."""
    text, self._held, done = self._held + new, "", _NOTHING
    while text:
      if self._place in (_BEGIN, _OPENED):
        text = self._begin(text, last)
      elif self._place == _REASONING:
        reasoning, found, text = text.partition(_CLOSE)
        if found:
          done += Part(reasoning.rstrip(_BREAKS), "")
          self._place = _CLOSED
        else:
          cut = len(reasoning) if last else _before_tag(reasoning)
          self._held = reasoning[cut:]
          done += Part(reasoning[:cut], "")
      elif self._place == _CLOSED:
        text = text.lstrip(_BREAKS)
        self._place = _ANSWER if text else _CLOSED
      else:
        return done + Part("", text)
    return done

  def _begin(self, text: str, last: bool) -> str:
    """Looks for a tag where a reply begins; returns the text after it."""
    begun = text.lstrip()
    tag = next((tag for tag in (_OPEN, _CLOSE) if begun.startswith(tag)), None)
    if tag is not None:
      self._place = _OPENED if tag == _OPEN else _CLOSED
      return begun[len(tag) :]
    if not last and (_OPEN.startswith(begun) or _CLOSE.startswith(begun)):
      self._held = text
      return ""
    if self._place == _OPENED:
      self._place = _REASONING
      return text.lstrip(_BREAKS)
    self._place = _ANSWER  # without tags not a character is lost
    return text


def _before_tag(text: str) -> int:
  """Where the tail begins that may be line breaks and a closing tag."""
  cut = len(text) - text_stream.tail_held(text, (_CLOSE,))
  return len(text[:cut].rstrip(_BREAKS))


def split(
  vocabulary: vocab_lib.Vocabulary,
  tokens: Iterable[int],
  stop: Sequence[str] = (),
  *,
  opened: bool = False,
) -> Part:
  """Reasoning and answer of a whole reply; see `Reply`.

  >>> split(vocab_lib.ByteVocabulary(), b"<think>\\nwhy\\n</think>\\n\\nso")
  Part(reasoning='why', answer='so')
  """
  reply = Reply(vocabulary, stop, opened=opened)
  for token in tokens:
    reply.push(token)
  reply.finish()
  return Part(reply.reasoning, reply.answer)
