"""Requests that no rule decides, with better and worse answers.

What general data is to DeepSeek-R1's last stage (section 2.3.4), at a size that
a 100,000-parameter model can learn: somebody is to be greeted, thanked or seen
off. A good answer does so, to the right person, and kindly; what is wrong with
a worse one is for a reward model to find out from pairs.
"""

import dataclasses
import random
from typing import Literal

from dsx.data import arithmetic
from dsx.data import problems as problems_lib

_WAYS = {
  "greet": ("hello, {}!", "hi, {}!", "good day, {}!"),
  "thank": ("thank you, {}!", "thanks, {}!", "many thanks, {}!"),
  "leave": ("goodbye, {}!", "bye, {}!", "see you, {}!"),
}
_CURT = ("{}.", "what, {}?", "no.", "{}, go.")
_CONSONANTS, _VOWELS = "bdfklmnrst", "aeiou"
_FORMS = {
  "tags": "<think>{thought}</think><answer>{answer}</answer>",
  "summary": "<think>{thought}</think>{answer}",
}
_PATIENCE = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generated:
  """Requests of this file, as a run's settings name them.

  Attributes:
    train: how many to train on.
    held_out: how many to evaluate with; nobody's name is on both sides.
    seed: which of them.
  """

  train: int = 512
  held_out: int = 64
  seed: int = 0

  def problems(self, split: arithmetic.Split) -> list[problems_lib.Problem]:
    """The requests of a split, always the same ones.

    Raises:
      ValueError: there are fewer.
    """
    n = self.train if split == "train" else self.held_out
    generator = random.Random(f"courtesy {self.seed}")
    found: dict[str, problems_lib.Problem] = {}
    for _ in range(_PATIENCE * n + 2000):
      name, way = _name(generator), generator.choice(list(_WAYS))
      if arithmetic.split_of(f"courtesy {name}") == split:
        found.setdefault(
          f"{way} {name}",
          problems_lib.Problem(
            name=f"courtesy/{way}_{name}",
            prompt=f"{way} {name}",
            domain="courtesy",
            kind="open",
            answer=None,
          ),
        )
      if len(found) == n:
        return list(found.values())
    raise ValueError(
      f"{split}={n}: expected at most as many requests as there are, about"
      f" {len(found)}; ask for fewer"
    )


def good(
  problem: problems_lib.Problem, form: Literal["tags", "summary"] = "tags"
) -> str:
  """A response that people would prefer; the same for the same problem."""
  generator = random.Random(f"good {problem.name}")
  way, name = _asked(problem)
  return _response(way, generator.choice(_WAYS[way]).format(name), form)


def poor(
  problem: problems_lib.Problem, form: Literal["tags", "summary"] = "tags"
) -> str:
  """A response of the right form that people would not prefer.

  It is curt, does another thing than was asked, or is meant for somebody else.
  """
  generator = random.Random(f"poor {problem.name}")
  way, name = _asked(problem)
  kind = generator.randrange(3)
  if kind == 0:
    answer = generator.choice(_CURT).format(name)
  elif kind == 1:
    other = generator.choice([w for w in _WAYS if w != way])
    answer = generator.choice(_WAYS[other]).format(name)
  else:
    stranger = _name(generator)
    while stranger == name:
      stranger = _name(generator)
    answer = generator.choice(_WAYS[way]).format(stranger)
  return _response(way, answer, form)


def _response(thought: str, answer: str, form: str) -> str:
  if form not in _FORMS:
    raise ValueError(f"form={form!r}: expected tags or summary; change it")
  return _FORMS[form].format(thought=thought, answer=answer)


def _asked(problem: problems_lib.Problem) -> tuple[str, str]:
  way, _, name = problem.prompt.partition(" ")
  if problem.domain != "courtesy" or way not in _WAYS:
    raise ValueError(
      f"problem.name={problem.name!r}: expected a request of data/courtesy.py;"
      " take its answers from elsewhere"
    )
  return way, name


def _name(generator: random.Random) -> str:
  syllables = generator.randint(1, 2)
  found = "".join(
    generator.choice(_CONSONANTS) + generator.choice(_VOWELS)
    for _ in range(syllables)
  )
  return found + generator.choice(_CONSONANTS)
