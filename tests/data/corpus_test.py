"""Documents of each task, their split, and the errors of bad corpora."""

import json
import pathlib

from absl.testing import parameterized

from dsx.data import corpus
from dsx.data import source_files


def _lines(*values) -> bytes:
  return b"".join(json.dumps(value).encode() + b"\n" for value in values)


class _FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path)

  def corpus(self, task: str, files: dict[str, bytes], **fields):
    """A corpus of files with the given contents."""
    for name, content in files.items():
      (self.root / name).write_bytes(content)
    listed = tuple(
      source_files.File(name, self.root / name) for name in sorted(files)
    )
    return corpus.Corpus(task, listed, **fields)


class DocumentsTest(_FolderTest):
  def test_many_text_files_are_a_document_each(self):
    files = {f"{i:02d}.txt": b"text %d\r\n" % i for i in range(20)}
    found = list(self.corpus("text_files", {**files, "x.txt": b""}).documents())
    self.assertLen(found, 20)  # the empty one is none
    self.assertEqual(found[3].text, "text 3\r\n")
    self.assertEqual(found[3].key, "03.txt")

  def test_a_single_text_file_is_cut_at_line_ends(self):
    text = "".join(f"line {i} é\n" for i in range(5000))
    found = list(
      self.corpus("text_files", {"a.txt": text.encode()}).documents()
    )
    self.assertEqual("".join(document.text for document in found), text)
    self.assertGreater(len(found), 5)
    for document in found:
      self.assertEndsWith(document.text, "\n")
      self.assertLess(len(document.text.encode()), 2 * corpus.PIECE_BYTES)
      self.assertEqual(document.key, document.text)

  @parameterized.parameters("a", "é", "日", "😀", "a😀é")
  def test_a_line_without_end_is_cut_between_characters(self, characters):
    text = "." + characters * 20000
    found = list(
      self.corpus("text_files", {"a.txt": text.encode()}).documents()
    )
    self.assertGreater(len(found), 1)
    self.assertEqual("".join(document.text for document in found), text)

  def test_json_lines(self):
    content = _lines({"text": "one\ntwo"}, {"text": ""}, {"text": "日", "n": 1})
    found = list(
      self.corpus("jsonl", {"a.jsonl": b"\n" + content + b"  \n"}).documents()
    )
    self.assertEqual([document.text for document in found], ["one\ntwo", "日"])
    self.assertEqual(
      [document.name for document in found], ["a.jsonl:2", "a.jsonl:4"]
    )

  def test_another_field(self):
    source = self.corpus(
      "jsonl", {"a.jsonl": _lines({"content": "x"})}, text_field="content"
    )
    self.assertEqual([document.text for document in source.documents()], ["x"])

  def test_the_standard_library_skips_and_counts_what_is_not_utf8(self):
    files = {
      "a.py": b"x = 1\n",
      "b.py": b"\xff\xfe",
      "c.py": b"y\n",
      "d.py": b"",
    }
    survey = self.corpus("stdlib", files).survey()
    self.assertEqual((survey.documents, survey.skipped), (2, 1))
    self.assertEqual(survey.bytes, 8)


class ErrorsTest(_FolderTest):
  @parameterized.named_parameters(
    (
      "whole_file",
      {f"{i}.txt": b"ok" for i in range(30)} | {"9.txt": b"abc\xe9def"},
      r"9.txt' is not UTF-8 at byte 3 ",
    ),
    (
      "late_piece",
      {"a.txt": b"0123456\n" * 10000 + b"ab\xff\n"},
      r"a.txt' is not UTF-8 at byte 80002 ",
    ),
    (
      "within_a_long_line",
      {"a.txt": b"x" * 30000 + b"\x80" + b"x" * 30000},
      r"a.txt' is not UTF-8 at byte 30000 ",
    ),
    (
      "cut_off_at_the_end",
      {"a.txt": b"x" * 100 + b"\xf0\x9f"},
      r"a.txt' is not UTF-8 at byte 100 ",
    ),
  )
  def test_text_that_is_not_utf8(self, files, message):
    with self.assertRaisesRegex(source_files.CorpusError, message):
      self.corpus("text_files", files).survey()

  @parameterized.named_parameters(
    ("not_utf8", b'{"text": "a"}\n{"text": "\xff"}\n', "UTF-8 at byte 24 "),
    ("not_json", b'{"text": "a"}\n{text}\n', r"a\.jsonl:2: not JSON"),
    (
      "no_field",
      _lines({"text": "a"}, {"body": "b"}),
      r"a\.jsonl:2: found the fields \['body'\]",
    ),
    ("null", _lines({"text": None}), r"a\.jsonl:1: found NoneType"),
    ("number", _lines({"text": 3}), r"a\.jsonl:1: found int, expected"),
    ("a_list", _lines(["text"]), r"a\.jsonl:1: found list"),
    (
      "surrogate",
      b'{"text": "a\\ud800"}\n',
      r"a\.jsonl:1: text: character 1 is a lone",
    ),
  )
  def test_json_lines(self, content, message):
    with self.assertRaisesRegex(source_files.CorpusError, message) as caught:
      self.corpus("jsonl", {"a.jsonl": content}).survey()
    self.assertNotIn("\n", str(caught.exception))

  def test_no_text_at_all(self):
    with self.assertRaisesRegex(
      source_files.CorpusError, "the 2 files of task 'text_files' hold no text"
    ):
      self.corpus("text_files", {"a.txt": b"", "b.txt": b""}).survey()

  def test_nothing_to_hold_out(self):
    with self.assertRaisesRegex(
      source_files.CorpusError, "a single unit of 5 bytes"
    ):
      self.corpus("text_files", {"a.txt": b"short"}).survey()


class SplitTest(_FolderTest):
  def _names(self, source: corpus.Corpus, split: str) -> list[str]:
    return [d.name for d in source.split(split, source.survey())]

  def test_every_document_is_in_one_split(self):
    files = {f"{i:03d}.txt": b"text %d" % i for i in range(400)}
    source = self.corpus("text_files", files)
    train, validation = (
      self._names(source, s) for s in ("train", "validation")
    )
    self.assertEqual(sorted(train + validation), sorted(files))
    self.assertBetween(len(validation), 16, 50)  # 32 expected

  def test_the_name_decides_where_there_are_many_files(self):
    files = {f"{i:03d}.txt": b"text %d" % i for i in range(400)}
    before = self._names(self.corpus("text_files", files), "validation")
    files = {name: content + b" changed" for name, content in files.items()}
    files["new.txt"] = b"new"
    after = self._names(self.corpus("text_files", files), "validation")
    self.assertEqual(before, [name for name in after if name != "new.txt"])

  def test_the_document_decides_where_there_are_few_files(self):
    lines = [{"text": f"document {i}"} for i in range(1000)]
    source = self.corpus("jsonl", {"a.jsonl": _lines(*lines)})
    held_out = [d.text for d in source.split("validation", source.survey())]
    self.assertBetween(len(held_out), 50, 110)  # 80 expected
    other = self.corpus("jsonl", {"b.jsonl": _lines(*lines[::-1])})
    again = [d.text for d in other.split("validation", other.survey())]
    self.assertCountEqual(held_out, again)

  @parameterized.parameters((2, 1), (3, 1), (12, 1), (50, 4), (199, 16))
  def test_a_small_corpus_holds_out_exactly_its_share(self, count, expected):
    lines = [{"text": f"document {i}"} for i in range(count)]
    source = self.corpus("jsonl", {"a.jsonl": _lines(*lines)})
    self.assertLen(self._names(source, "validation"), expected)
    self.assertLen(self._names(source, "train"), count - expected)

  def test_equal_documents_stay_together(self):
    lines = [{"text": f"document {i % 10}"} for i in range(100)]
    source = self.corpus("jsonl", {"a.jsonl": _lines(*lines)})
    held_out = {d.text for d in source.split("validation", source.survey())}
    train = {d.text for d in source.split("train", source.survey())}
    self.assertNoCommonElements(held_out, train)
    self.assertLen(held_out | train, 10)
