"""Whether a program does what it should: its output for given inputs.

DeepSeek-R1 section 2.2.2: accuracy of code is told by running it on test cases.
What a program is compared with never enters its sandbox, so that it can't be
printed back, and a test is passed by the right output alone: whatever else a
program does to look successful counts for nothing.
"""

from collections.abc import Sequence
import dataclasses
import re

from dsx.rl import sandbox

_BLOCK = re.compile(
  r"^```[ \t]*(?:python3?|py)?[ \t]*\n(.*?)^```[ \t]*$",
  re.DOTALL | re.MULTILINE | re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Case:
  """A test case.

  Attributes:
    stdin: what the program reads.
    stdout: what it must print; white space at the ends of lines and of the
      text does not matter.
  """

  stdin: str
  stdout: str


def program_in(answer: str) -> str | None:
  """The program that an answer gives.

  Args:
    answer: a program, or words around one block between lines of ```.

  Returns:
    None if there are several blocks, or one that does not end: the answer has
    not decided.
  """
  if "```" not in answer:
    return answer
  blocks = _BLOCK.findall(answer)
  return blocks[0] if len(blocks) == 1 and answer.count("```") == 2 else None


def grade(
  program: str, cases: Sequence[Case], limits: sandbox.Limits | None = None
) -> float:
  """1.0 if a program passes every case, else 0.0.

  Args:
    program: a Python program.
    cases: at least one.
    limits: of each case.

  Raises:
    ValueError: there is no case.
    sandbox.Unavailable: programs can't be run safely here.
  """
  if not cases:
    raise ValueError(
      "cases=(): expected at least one; a program without tests proves nothing"
    )
  for case in cases:
    outcome = sandbox.run(program, limits, stdin=case.stdin)
    if outcome.end != "exited" or outcome.code != 0:
      return 0.0
    if _lines(outcome.stdout) != _lines(case.stdout):
      return 0.0
  return 1.0


def _lines(text: str) -> list[str]:
  return [line.rstrip() for line in text.strip().splitlines()]
