"""Tokens to text while they come: whole characters, up to a stop string.

A token of a byte-level BPE may end in the middle of a character, and a stop
string may be spread over several tokens. What is handed on is never taken
back: of the text so far, the tail that may still become a stop string waits.
"""

import codecs
from collections.abc import Sequence

from dsx.data import vocab as vocab_lib


def tail_held(text: str, strings: Sequence[str]) -> int:
  """How many characters at the end of `text` may begin one of `strings`.

  That is the length of the longest suffix that is a proper prefix of any.

  >>> tail_held("a nice en", ("end", "nothing"))
  2
  """
  longest = max((len(string) for string in strings), default=1) - 1
  for length in range(min(longest, len(text)), 0, -1):
    tail = text[-length:]
    if any(s.startswith(tail) and len(s) > length for s in strings):
      return length
  return 0


class TextStream:
  """The text of one answer.

  Pushed and finished without a stop string, its pieces joined are
  `Vocabulary.decode` of all tokens: bytes that are not UTF-8 become U+FFFD.
  Of several stop strings in a text, the one that is complete first ends it,
  and of those complete at once the longest: how the text is cut into tokens
  does not matter.

  Attributes:
    text: what was handed on so far, joined.
    stopped: whether a stop string came. It and all after it are left out.
  """

  def __init__(
    self,
    vocabulary: vocab_lib.Vocabulary,
    stop: Sequence[str] = (),
    specials: bool = False,
  ):
    """Starts an empty text.

    Args:
      vocabulary: of the tokens.
      stop: strings that end the text.
      specials: show special tokens as their strings; else they leave no trace.

    Raises:
      ValueError: a stop string is empty.
    """
    if isinstance(stop, str) or "" in stop:
      raise ValueError(
        f"stop={stop!r}: expected strings of at least one character; leave "
        "empty ones out"
      )
    self._vocabulary = vocabulary
    self._stop = tuple(stop)
    self._specials = specials
    # Agrees with decoding everything at once, wherever it is cut.
    self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
    self._held = ""
    self._given: list[str] = []
    self.stopped = False

  @property
  def text(self) -> str:
    """What was handed on so far, joined."""
    return "".join(self._given)

  def push(self, token: int) -> str:
    """Takes the next token; returns the text that became certain.

    Raises:
      ValueError: `token` lies outside the vocabulary.
    """
    token = int(token)
    if not 0 <= token < self._vocabulary.size:
      raise ValueError(
        f"token {token}: expected ids in [0, {self._vocabulary.size}) of the "
        f"vocabulary {self._vocabulary.name!r}"
      )
    piece = self._vocabulary.piece(token)
    if self._specials and not piece:
      shown = self._vocabulary.decode([token], specials=True)
      piece = shown.encode("utf-8")
    return self._certain(self._decoder.decode(piece))

  def finish(self) -> str:
    """Ends the text; returns what was held back."""
    certain = self._certain(self._decoder.decode(b"", final=True))
    left = "" if self.stopped else self._held
    self._held = ""
    self._given.append(left)
    return certain + left

  def _certain(self, new: str) -> str:
    if self.stopped:
      return ""
    text = self._held + new
    found = [(text.find(s) + len(s), text.find(s)) for s in self._stop]
    found = [(end, start) for end, start in found if start >= 0]
    if found:
      self.stopped = True
      certain, self._held = text[: min(found)[1]], ""
    else:
      cut = len(text) - tail_held(text, self._stop)
      certain, self._held = text[:cut], text[cut:]
    self._given.append(certain)
    return certain
