"""What FP8's switches save is read from the right programs."""

import argparse
import json
import pathlib
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized

from benchmarks import fp8_memory

_MIB = 2**20


def _flags(**changes):
  flags = {
    "model": "v3_small",
    "batch": 4,
    "topology": "h100:1x1",
    "implementation": "auto",
  }
  return argparse.Namespace(**(flags | changes))


class BuildTest(parameterized.TestCase):
  @parameterized.parameters(*fp8_memory.CASES)
  def test_a_case_differs_from_the_one_without_it_in_one_thing(self, case):
    run = fp8_memory.build(case, "paper", _flags())
    self.assertEqual(run.micro_batches, 1)
    self.assertEqual(run.dtypes.compute, "bfloat16")
    if not case.against:
      return
    (other,) = (c for c in fp8_memory.CASES if c.name == case.against)
    without = fp8_memory.build(other, "paper", _flags())
    self.assertEqual(run.config, without.config)
    self.assertEqual(run.schedule, without.schedule)
    parts = ("dtypes", "execution", "optimizer")
    differ = [p for p in parts if getattr(run, p) != getattr(without, p)]
    self.assertLen(differ, 1)


class MeasureTest(absltest.TestCase):
  def test_every_program_is_compiled_once(self):
    flags = _flags(work=pathlib.Path(self.create_tempdir().full_path))
    found = {"state": 10 * _MIB, "temporaries": 5 * _MIB, "seconds": 1.0}
    with mock.patch.object(fp8_memory, "compile_case", return_value=found):
      first = fp8_memory.measure(flags)
    programs = sum(len(case.remats) for case in fp8_memory.CASES)
    self.assertLen(first, programs)
    with mock.patch.object(
      fp8_memory, "compile_case", side_effect=AssertionError
    ):
      self.assertEqual(fp8_memory.measure(flags), first)
    lines = (flags.work / "memory.jsonl").read_text().splitlines()
    self.assertEqual([json.loads(line) for line in lines], first)

  def test_savings_are_against_the_program_without_the_switch(self):
    name = "cache_inputs = float8"
    against = next(c.against for c in fp8_memory.CASES if c.name == name)
    sizes = {against: (100, 50), name: (100, 42)}
    found = [
      {
        "case": case,
        "remat": "none",
        "state": state * _MIB,
        "temporaries": temporaries * _MIB,
        "sent": 7 * _MIB,
      }
      for case, (state, temporaries) in sizes.items()
    ]
    lines = fp8_memory.table(found).splitlines()
    (line,) = (line for line in lines if line.startswith(f"| {name}"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    self.assertEqual(cells, [name, "100", "42", "8", "", "", "", "7"])


if __name__ == "__main__":
  absltest.main()
