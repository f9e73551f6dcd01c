"""How much of a text is said again.

A policy that repeats itself fills its context and learns nothing; DeepSeek-R1
section 2.3.1 filters such answers out of the cold start. Measured here as the
share of n-grams that came before: 0 for a text that never repeats n words in a
row, close to 1 for one that says the same for ever.
"""

import re

# A word is a run of Latin letters or of digits, or any other character.
_WORD = re.compile(r"[A-Za-z\u00c0-\u024f]+|\d+|\S")


def share(text: str, n: int = 8) -> float:
  """The share of n-grams of words that are repetitions.

  Args:
    text: of any length; fewer than n words repeat nothing.
    n: words.

  >>> share("a b a b a", n=2)
  0.5
  """
  if n < 1:
    raise ValueError(f"n={n}: expected at least 1 word; raise it")
  words = _WORD.findall(text)
  total = len(words) - n + 1
  if total <= 0:
    return 0.0
  grams = {tuple(words[i : i + n]) for i in range(total)}
  return 1.0 - len(grams) / total
