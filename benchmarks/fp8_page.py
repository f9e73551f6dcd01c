"""Sections of docs/fp8.md that measurements are written into.

A section lies between two comments, `<!-- NAME: ... -->` and `<!-- /NAME -->`;
the words around it are a person's.
"""

import datetime
import pathlib
import re

from benchmarks import report

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs/fp8.md"


def write(name: str, body: str, page: pathlib.Path = PAGE) -> None:
  """Replaces a section, with date, hardware and commit.

  Args:
    name: of the section.
    body: Markdown.
    page: the file.

  Raises:
    ValueError: the page has no such section.
  """
  text = page.read_text(encoding="utf-8")
  pattern = re.compile(
    rf"(<!-- {re.escape(name)}:[^\n]*-->\n).*?(<!-- /{re.escape(name)} -->)",
    re.DOTALL,
  )
  today = datetime.date.today().isoformat()
  stamp = f"{today}, {report.processor()}, commit {report.commit()}."
  text, found = pattern.subn(
    lambda match: f"{match[1]}\n{stamp}\n\n{body}\n\n{match[2]}", text
  )
  if found != 1:
    raise ValueError(
      f"{page}: expected one section `<!-- {name}: ... -->` with its end "
      f"`<!-- /{name} -->`, found {found}; write them where it should be"
    )
  page.write_text(text, encoding="utf-8")
