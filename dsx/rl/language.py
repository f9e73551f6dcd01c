"""Which share of a text's words is in the language that it should be in.

DeepSeek-R1 section 2.3.2: the language consistency reward is the share of words
of the target language in the chain of thought. Neither report says what a word
is; here it is

  a run of letters of one script, apostrophes and combining marks included, or
  a single character where a script has no spaces (Han, Hiragana, Katakana,
  Thai, ...).

Numbers, operators and punctuation are no words, so that formulas cost nothing.
A language is told by its script alone: English from Chinese, not from French.
"""

from collections.abc import Iterator
import functools
import unicodedata

# How the names of a script's letters begin in the Unicode database.
SCRIPTS = {
  "ar": ("ARABIC",),
  "de": ("LATIN",),
  "el": ("GREEK",),
  "en": ("LATIN",),
  "es": ("LATIN",),
  "fr": ("LATIN",),
  "he": ("HEBREW",),
  "hi": ("DEVANAGARI",),
  "ja": ("HIRAGANA", "KATAKANA", "CJK"),
  "ko": ("HANGUL",),
  "pt": ("LATIN",),
  "ru": ("CYRILLIC",),
  "th": ("THAI",),
  "zh": ("CJK",),
}
_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER")
_INSIDE_WORDS = "'\u2019"


def words(text: str) -> Iterator[tuple[str, str]]:
  """The words of a text with their scripts.

  >>> list(words("Let x be 3 \u4e09"))
  [('Let', 'LATIN'), ('x', 'LATIN'), ('be', 'LATIN'), ('\u4e09', 'CJK')]
  """
  run, script = "", ""
  for character in text:
    own = _script(character)
    inside = own == "" and run and _joins(character)
    if inside:
      run += character
      continue
    if run and (own != script or own in _WITHOUT_SPACES):
      yield run, script
      run = ""
    if own:
      run, script = run + character, own
    elif run:
      yield run, script
      run = ""
  if run:
    yield run, script


def consistency(text: str, language: str) -> float:
  """Share of the words that are in a language's script.

  Args:
    text: the chain of thought.
    language: of `SCRIPTS`.

  Returns:
    0 to 1; 0 where there is no word, so that silence earns nothing.

  Raises:
    ValueError: the language is unknown.
  """
  if language not in SCRIPTS:
    raise ValueError(
      f"language={language!r}: expected one of {', '.join(SCRIPTS)}; add its"
      " script to dsx/rl/language.py"
    )
  scripts = [script for _, script in words(text)]
  if not scripts:
    return 0.0
  return sum(s in SCRIPTS[language] for s in scripts) / len(scripts)


def _joins(character: str) -> bool:
  mark = unicodedata.category(character).startswith("M")
  return mark or character in _INSIDE_WORDS


@functools.lru_cache(maxsize=4096)
def _script(character: str) -> str:
  """The first word of a letter's name; empty for what is no letter."""
  if not character.isalpha():
    return ""
  name = unicodedata.name(character, "")
  return name.split(" ", 1)[0] if name else ""
