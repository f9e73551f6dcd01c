"""`python -m experiments.balance_experts` as a person calls it, and its use."""

import json
import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from dsx.parallel import placement_file
from tests.experiments import trained_run

_LAYERS = ["0", "mtp_0"]
_MESH = (
  "--gin.Generation.mesh=@MeshShape()",
  "--gin.MeshShape.node=2",
  "--gin.MeshShape.local=2",
  "--gin.MeshShape.data=2",
)


class BalanceExpertsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = trained_run.make()
    run = json.loads((cls.workdir / "run.json").read_text())
    cls.experts = run["config"]["n_routed_experts"]

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    load = np.random.default_rng(0).lognormal(0, 1, (2, 2, self.experts))
    lines = [{"layers": _LAYERS, "load": rows.tolist()} for rows in load]
    self.loads = self.folder / "loads.jsonl"
    self.loads.write_text("\n".join(map(json.dumps, lines)))

  def call(self, *arguments):
    return trained_run.call(
      "balance_experts", f"--loads={self.loads}", *arguments
    )

  def balanced(self):
    done = self.call(
      f"--workdir={self.workdir}", "--nodes=2", "--local=2", "--redundant=4"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    return done.stdout

  def test_table_and_files(self):
    said = self.balanced()
    found = placement_file.read(self.workdir / "placement.json")
    self.assertEqual((found.nodes, found.local, found.redundant), (2, 2, 4))
    self.assertEqual(found.experts, self.experts)
    self.assertEqual(list(found.layers), _LAYERS)
    self.assertIn("placed by the loads of record 1\n", said)
    self.assertIn("held against those of record 2\n", said)
    before, after = [float(x) for x in said.split("\ntotal")[1].split()[:2]]
    self.assertLess(after, before)
    picture = (self.workdir / "placement.png").read_bytes()
    self.assertStartsWith(picture, b"\x89PNG")

  def test_a_dry_run_writes_nothing(self):
    target = self.folder / "new"
    done = self.call(
      f"--workdir={target}", "--groups=2", "--local=2", "--dry_run"
    )
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertIn("busiest / mean:", done.stdout)
    self.assertFalse(target.exists())

  @parameterized.parameters(
    (("--local=3",), "redundant=0: expected the {} experts and their copies"),
    ((), "n_group in it; give Balancing.groups"),
    (("--groups=2", "--loads=nowhere"), "nowhere: No such file or directory"),
  )
  def test_one_line_says_what_is_wrong(self, arguments, message):
    where = self.workdir if "--local=3" in arguments else self.folder / "new"
    done = self.call(f"--workdir={where}", *arguments)
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertIn(message.format(self.experts), done.stderr)
    self.assertLen(done.stderr.splitlines(), 1)

  def test_texts_stay(self):
    self.balanced()
    (self.folder / "prompts.txt").write_text("def f\nx = \n")
    texts = []
    for place in ((), (f"{self.workdir}/placement.json",)):
      output = self.folder / f"{len(place)}.jsonl"
      done = trained_run.call(
        "generate",
        f"--checkpoint={self.workdir}",
        f"--prompts_file={self.folder / 'prompts.txt'}",
        f"--output={output}",
        "--max_new_tokens=6",
        "--drafts=1",
        *(f"--gin.Generation.placement={path!r}" for path in place),
        *(_MESH if place else ()),
      )
      self.assertEqual(done.returncode, 0, done.stderr)
      lines = map(json.loads, output.read_text().splitlines())
      texts.append([line["token_ids"] for line in lines])
    self.assertEqual(*texts)

  @parameterized.parameters(
    ("generate", "Generation", ("--prompt=a",)), ("serve", "Serving", ())
  )
  def test_other_devices_are_refused_before_weights_are_read(
    self, binary, fields, arguments
  ):
    self.balanced()
    path = f"{self.workdir}/placement.json"
    done = trained_run.call(
      binary,
      f"--checkpoint={self.workdir}",
      *arguments,
      f"--gin.{fields}.placement={path!r}",
      "--dry_run",
    )
    self.assertEqual(done.returncode, 1, done.stderr)
    self.assertEqual(
      done.stderr,
      "placement of experts for 2 x 2 devices: the mesh has 1 x 1 (node x "
      "local); balance again for these, or change the mesh\n",
    )


if __name__ == "__main__":
  absltest.main()
