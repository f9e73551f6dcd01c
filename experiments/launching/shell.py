"""Values in shell scripts: quoted so that a shell reads them back unchanged."""

from collections.abc import Sequence
import re
import shlex

_HARMLESS = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_LITERAL = re.compile(r"[\w@%+=:,./ ()\[\]<>*?!;&|^~#-]", re.ASCII)


def array(name: str, words: Sequence[str]) -> list[str]:
  """Lines of bash that put words into an array, one on a line."""
  return [f"{name}=(", *(f"  {shlex.quote(word)}" for word in words), ")"]


def supervision(max_restarts: int, end: str = "exit 0") -> list[str]:
  """Lines that start `attempt` again and again until it is done.

  The script defines `attempt`, which runs the job, and `progress`, whose output
  differs once a further checkpoint was saved.

  Args:
    max_restarts: restarts in a row without progress.
    end: what to do when an attempt has ended well; it leaves the script.
  """
  return [
    "# 0 is done or asked to stop; 2 is a mistake in flags or gin files.",
    f"most={max_restarts} restarts=0 before=$(progress)",
    "while true; do",
    f"  attempt && {end} || code=$?",
    "  ((code == 2)) && exit 2",
    "  after=$(progress)",
    '  [[ $after != "$before" ]] && restarts=0',
    "  before=$after restarts=$((restarts + 1))",
    "  if ((restarts > most)); then",
    '    echo "exit code $code, and no progress in $restarts attempts" >&2',
    '    exit "$code"',
    "  fi",
    '  echo "exit code $code; restart $restarts of $most" >&2',
    "done",
  ]


def plain_words(words: Sequence[str]) -> str:
  """Words for bash in one line that nothing before bash can misread.

  In bash's `$'...'`, quotes, backslashes, dollars, braces and whatever is not
  printable ASCII are written as bytes in hexadecimal. So the line may pass
  through templates, YAML blocks and Kubernetes' `$(NAME)` without a change.
  """
  return " ".join(map(_plain_word, words))


def _plain_word(word: str) -> str:
  if _HARMLESS.fullmatch(word):
    return word
  inner = "".join(
    character
    if _LITERAL.fullmatch(character)
    else "".join(f"\\x{byte:02x}" for byte in character.encode())
    for character in word
  )
  return f"$'{inner}'"
