"""How a problem is put to a policy.

  r1_zero  DeepSeek-R1 table 1: words alone, no chat tokens, so that a base
           model can go on from it; BOS first
  chat     the template of DeepSeek's chat models (`data.chat`), which ends
           inside of reasoning
  plain    the question and a line break, for models of a few hundred thousand
           parameters that read bytes; BOS first
  else     any text that has {prompt} in it once; BOS first

A problem's prompt is plain text to all of them: special tokens and tags that
somebody wrote into it stay characters.
"""

from collections.abc import Sequence
import dataclasses

from dsx.data import chat
from dsx.data import special_tokens
from dsx.data import vocab as vocab_lib

_PLACE = "{prompt}"
R1_ZERO = (
  "A conversation between User and Assistant. The user asks a question, and the"
  " Assistant solves it. The assistant first thinks about the reasoning process"
  " in the mind and then provides the user with the answer. The reasoning"
  " process and answer are enclosed within <think> </think> and <answer>"
  " </answer> tags, respectively, i.e., <think> reasoning process here </think>"
  " <answer> answer here </answer>. User: {prompt}. Assistant:"
)
_TEXTS = {"r1_zero": R1_ZERO, "plain": "{prompt}\n"}
_TAGS = ("think", "/think")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
  """See the module's docstring.

  Attributes:
    kind: `r1_zero`, `chat`, `plain`, or a text with {prompt} in it.
    system: what a chat begins with.
    think: whether a chat's answer begins with reasoning.
  """

  kind: str = "r1_zero"
  system: str = ""
  think: bool = True

  def __post_init__(self):
    if self.kind not in (*_TEXTS, "chat") and self.kind.count(_PLACE) != 1:
      raise ValueError(
        f"kind={self.kind!r}: expected r1_zero, chat, plain or a text that has"
        f" {_PLACE} in it once; change it"
      )
    if self.kind != "chat" and (self.system or not self.think):
      raise ValueError(
        f"system={self.system!r}, think={self.think}: expected these of"
        " kind='chat' only; leave them out"
      )

  @property
  def opens_thought(self) -> bool:
    """Whether prompts end with <think>, so that answers lack it."""
    return self.kind == "chat" and self.think

  def tokens(self, vocabulary: vocab_lib.Vocabulary, prompt: str) -> list[int]:
    """The token ids of a prompt.

    Args:
      vocabulary: of the policy.
      prompt: the bare question.

    Raises:
      ValueError: the prompt is empty or no Unicode text, or the vocabulary has
        no tokens for a chat.
    """
    if not prompt:
      raise ValueError("prompt='': expected text; ask something")
    if self.kind == "chat":
      said = [{"role": "system", "content": self.system}] if self.system else []
      said.append({"role": "user", "content": prompt})
      return chat.encode(vocabulary, said, think=self.think)
    before, _, after = _TEXTS.get(self.kind, self.kind).partition(_PLACE)
    bos = vocabulary.special.get("bos")
    text = vocabulary.encode(before + prompt + after)
    return ([] if bos is None else [bos]) + text


def response_tokens(vocabulary: vocab_lib.Vocabulary, text: str) -> list[int]:
  """The token ids of a response to learn from, without EOS.

  <think> and </think> become the vocabulary's tokens of that name, as in the
  published tokenizers; no other text becomes a special token. `response_text`
  is the way back.

  Args:
    vocabulary: of the policy.
    text: a response.

  Raises:
    ValueError: it is no Unicode text.
  """
  tokens: list[int] = []
  known = [name for name in _TAGS if name in vocabulary.special]
  while text:
    found = [(text.find(special_tokens.STRINGS[n]), n) for n in known]
    at, name = min(
      ((at, n) for at, n in found if at >= 0), default=(len(text), None)
    )
    tokens += vocabulary.encode(text[:at]) if at else []
    if name is None:
      break
    tokens.append(vocabulary.special[name])
    text = text[at + len(special_tokens.STRINGS[name]) :]
  return tokens


def response_text(
  vocabulary: vocab_lib.Vocabulary, tokens: Sequence[int]
) -> str:
  """What a policy said, to be graded or shown.

  One EOS at the end leaves no trace. All other special tokens show as their
  strings: a policy that says them has not kept to the form.

  Args:
    vocabulary: of the policy.
    tokens: int [n], as sampled.
  """
  ids = [int(token) for token in tokens]
  if ids and ids[-1] == vocabulary.special["eos"]:
    ids = ids[:-1]
  return vocabulary.decode(ids, specials=True)
