"""A response's chain of thought and answer, and whether its form is right.

  tags     DeepSeek-R1 section 2.2.2 (format reward) and table 1: the reasoning
           between `<think>` and `</think>`, then the answer between `<answer>`
           and `</answer>`, with nothing but white space around and between
  summary  section 2.3.1: the reasoning, then a summary to its end, which is the
           answer; or what stands in its one \\boxed{...}, if it has any

The form is right if there is exactly one of each tag, in this order. Tags in
the prompt count for nothing: only the response is read.
"""

import dataclasses
import re
from typing import Literal

Form = Literal["tags", "summary"]
FORMS = ("tags", "summary")
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORM = re.compile(
  r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL
)
_SUMMARY = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
_BOX = "\\boxed{"


@dataclasses.dataclass(frozen=True)
class Response:
  """A response, taken apart.

  Attributes:
    thought: the chain of thought; empty if the form is wrong.
    answer: without the white space around it; None if the form is wrong. With
      form `summary` it is empty if there are several boxes: that is no answer.
  """

  thought: str
  answer: str | None

  @property
  def well_formed(self) -> bool:
    """Whether each tag is there once, in order."""
    return self.answer is not None


def parse(text: str, *, opened: bool = False, form: Form = "tags") -> Response:
  """Takes a response apart.

  Args:
    text: what was sampled, without prompt and end of sequence.
    opened: whether the prompt ends with `<think>`, which is then not expected
      here.
    form: what is expected.

  >>> parse("<think>2+2 is 4</think> <answer> 4 </answer>")
  Response(thought='2+2 is 4', answer='4')
  >>> parse("<answer>4</answer>").well_formed
  False
  >>> parse("2+2</think> \\\\boxed{4}.", opened=True, form="summary").answer
  '4'
  """
  text = _TAGS[0] + text if opened else text
  tags, pattern = (_TAGS, _FORM) if form == "tags" else (_TAGS[:2], _SUMMARY)
  match = pattern.fullmatch(text)
  if match is None or any(text.count(tag) != 1 for tag in tags):
    return Response("", None)
  thought, answer = match.groups()
  answer = answer.strip()
  if form == "tags":
    return Response(thought, answer)
  return Response(thought, _boxed(answer)) if answer else Response("", None)


def _boxed(summary: str) -> str:
  """What is in a summary's box; the summary, if it has none."""
  before, box, rest = summary.partition(_BOX)
  if not box:
    return before
  depth = 1
  for at, character in enumerate(rest):
    depth += (character == "{") - (character == "}")
    if depth == 0:
      more = _BOX in rest[at:]
      return "" if more or _BOX in rest[:at] else rest[:at].strip()
  return ""
