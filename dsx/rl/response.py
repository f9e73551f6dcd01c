"""A response's chain of thought and answer, and whether its form is right.

DeepSeek-R1 section 2.2.2 (format reward) and table 1: the reasoning between
`<think>` and `</think>`, then the answer between `<answer>` and `</answer>`.
The form is right if there is exactly one of each, in this order, and nothing
but white space around and between. Tags in the prompt count for nothing: only
the response is read.
"""

import dataclasses
import re

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORM = re.compile(
  r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class Response:
  """A response, taken apart.

  Attributes:
    thought: the chain of thought; empty if the form is wrong.
    answer: without the white space around it; None if the form is wrong.
  """

  thought: str
  answer: str | None

  @property
  def well_formed(self) -> bool:
    """Whether each tag is there once, in order."""
    return self.answer is not None


def parse(text: str, *, opened: bool = False) -> Response:
  """Takes a response apart.

  Args:
    text: what was sampled, without prompt and end of sequence.
    opened: whether the prompt ends with `<think>`, which is then not expected
      here.

  >>> parse("<think>2+2 is 4</think> <answer> 4 </answer>")
  Response(thought='2+2 is 4', answer='4')
  >>> parse("<answer>4</answer>").well_formed
  False
  """
  text = _TAGS[0] + text if opened else text
  match = _FORM.fullmatch(text)
  if match is None or any(text.count(tag) != 1 for tag in _TAGS):
    return Response("", None)
  thought, answer = match.groups()
  return Response(thought, answer.strip())
