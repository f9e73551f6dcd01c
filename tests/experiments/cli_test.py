import json
import linecache
import logging
import os
import pathlib
import subprocess
import sys
import textwrap

from absl.testing import absltest
from absl.testing import parameterized

from dsx.models import config as config_lib
from experiments import configuration
from experiments import provenance
from experiments import screen

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_TARGET = "dsx.models.config.DeepSeekConfig"
_BINARY = '''
"""Builds a config.

A longer word on it.
"""

import json
import linecache
import logging
import os
import sys

from absl import flags

from experiments import cli

_TARGET = "dsx.models.config.DeepSeekConfig"
_DO = flags.DEFINE_string("do", "", "What to do.")


def main(argv):
  config = cli.build(_TARGET)
  if _DO.value == "interrupt":
    raise KeyboardInterrupt
  if _DO.value == "mistake":
    raise ValueError("a mistake in the code")
  if _DO.value == "missing":
    open("/nowhere/at/all")
  if _DO.value == "fail":
    return 3
  if _DO.value == "write":
    print("x" * int(os.environ["CHARACTERS"]))
  if _DO.value == "log":
    logging.getLogger("orbax").info("INFO of a library")
    logging.getLogger("orbax").warning("WARNING of a library")
  if _DO.value == "show":
    print(json.dumps({
      "hidden_size": config.hidden_size,
      "workdir": str(cli.workdir()),
      "dry_run": cli.DRY_RUN.value,
      "heavy": [m for m in ("jax", "numpy", "tensorflow") if m in sys.modules],
      "quiet": os.environ["TF_CPP_MIN_LOG_LEVEL"],
    }))


if __name__ == "__main__":
  cli.run(main, target=_TARGET)
'''
_TINY = """
from __gin__ import dynamic_registration
from dsx.models import config
WIDTH = 64
config.DeepSeekConfig.hidden_size = %WIDTH
config.DeepSeekConfig.rope_scaling = @short/config.RopeScaling()
short/config.RopeScaling.factor = 2
"""


class BinaryTest(parameterized.TestCase):
  """A binary as a person starts it, from a folder that is not the project's."""

  def setUp(self):
    super().setUp()
    self.folder = pathlib.Path(self.create_tempdir().full_path)
    (self.folder / "binary.py").write_text(_BINARY)
    (self.folder / "tiny.gin").write_text(_TINY)

  def start(self, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    # JAX, once imported by another test, leaves its own choice there.
    environment.pop("TF_CPP_MIN_LOG_LEVEL", None)
    return subprocess.run(
      [sys.executable, "binary.py", *arguments],
      cwd=self.folder,
      env=environment,
      text=True,
      check=False,
      **({"capture_output": True} | options),
    )

  @parameterized.named_parameters(
    (
      "misspelt_binding",
      ["--gin_file=tiny.gin", "--gin.DeepSeekConfig.hiden_size=3"],
      2,
      "--gin_bindings:1: config.DeepSeekConfig has no field 'hiden_size'; did"
      " you mean 'hidden_size'?\n",
    ),
    (
      "misspelt_flag",
      ["--gin_fiel=tiny.gin"],
      2,
      "--gin_fiel: unknown flag; did you mean --gin_file?\n",
    ),
    (
      "no_flag",
      ["tiny.gin"],
      2,
      "'tiny.gin': expected flags only; write --gin_file=tiny.gin\n",
    ),
    (
      "value_of_a_flag",
      ["--seed=one"],
      2,
      "flag --seed=one: invalid literal for int() with base 10: 'one'\n",
    ),
    (
      "value_that_the_class_refuses",
      ["--gin_file=tiny.gin", "--gin.DeepSeekConfig.n_group=3"],
      1,
      "--gin_bindings:1: n_group=3: expected a divisor of n_routed_experts=256;"
      " change either\n",
    ),
    (
      "error_of_the_operating_system",
      ["--do=missing"],
      1,
      "/nowhere/at/all: No such file or directory\n",
    ),
    ("interrupted", ["--do=interrupt"], 130, "interrupted\n"),
    ("exit_code_of_main", ["--do=fail"], 3, ""),
  )
  def test_ends_with_one_line(self, arguments, code, line):
    result = self.start(*arguments)
    self.assertEqual(
      (result.returncode, result.stderr, result.stdout), (code, line, "")
    )

  def test_mistakes_in_the_code_keep_their_traceback(self):
    result = self.start("--do=mistake")
    self.assertEqual(result.returncode, 1)
    self.assertStartsWith(result.stderr, "Traceback")
    self.assertEndsWith(result.stderr, "ValueError: a mistake in the code\n")

  @parameterized.parameters(100, 100_000)
  def test_reader_of_the_output_goes_away(self, characters):
    os.environ["CHARACTERS"] = str(characters)
    reading, writing = os.pipe()
    os.close(reading)
    result = self.start(
      "--do=write",
      capture_output=False,
      stdout=writing,
      stderr=subprocess.PIPE,
    )
    os.close(writing)
    self.assertEqual((result.returncode, result.stderr), (141, ""))

  def test_reader_of_the_help_goes_away(self):
    reading, writing = os.pipe()
    os.close(reading)
    result = self.start(
      "--help", capture_output=False, stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    self.assertEqual((result.returncode, result.stderr), (141, ""))

  def test_finds_gin_files_and_imports_nothing_heavy(self):
    result = self.start(
      "--gin_file=gin_configs/models/v3.gin",
      "--gin.DeepSeekConfig.hidden_size=128",
      "--gin_bindings=DeepSeekConfig.hidden_size = 256",
      "--dry_run",
      "--do=show",
    )
    self.assertEqual(result.stderr, "")
    self.assertEqual(
      json.loads(result.stdout),
      {
        "hidden_size": 256,
        "workdir": str(self.folder / "runs" / "v3"),
        "dry_run": True,
        "heavy": [],
        "quiet": "2",
      },
    )

  def test_workdir_remembers_its_config(self):
    workdir = self.folder / "elsewhere"
    workdir.mkdir()
    (workdir / "config.gin").write_text(_TINY)
    result = self.start("--workdir=elsewhere", "--do=show")
    shown = json.loads(result.stdout)
    self.assertEqual(shown["hidden_size"], 64)
    self.assertEqual(shown["workdir"], str(workdir))

  def test_print_config_says_what_is_bound_and_what_is_in_use(self):
    result = self.start("--gin_file=tiny.gin", "--print_config")
    self.assertEqual(result.stderr, "")
    bound, in_use = result.stdout.split("# In use:\n")
    self.assertIn("config.DeepSeekConfig.hidden_size = %WIDTH", bound)
    self.assertIn("WIDTH = 64  # tiny.gin:4\n", bound)
    self.assertNotIn("v_head_dim", bound)
    self.assertIn("config.DeepSeekConfig.v_head_dim = 128\n", in_use)

  def test_libraries_are_quiet_unless_asked(self):
    quiet = self.start("--do=log").stderr
    self.assertNotIn("INFO of a library", quiet)
    self.assertIn("WARNING of a library", quiet)
    self.assertIn("INFO of a library", self.start("--do=log", "-v=1").stderr)

  def test_help_is_short(self):
    result = self.start("--help")
    self.assertEqual(result.returncode, 0)
    self.assertStartsWith(result.stdout, "usage: ")
    for word in ("A longer word", "--gin_bindings", "--dry_run", "--do"):
      self.assertIn(word, result.stdout)
    self.assertLess(result.stdout.count("\n"), 40)


class ConfigurationTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.file = pathlib.Path(self.create_tempdir().full_path) / "run.gin"
    self.file.write_text(_TINY)

  def test_builds(self):
    configuration.prepare(_TARGET, [str(self.file)])
    self.assertEqual(
      configuration.build(_TARGET),
      config_lib.DeepSeekConfig(
        hidden_size=64, rope_scaling=config_lib.RopeScaling(factor=2)
      ),
    )

  def test_bindings_of_one_run_are_not_those_of_the_next(self):
    configuration.prepare(_TARGET, [str(self.file)])
    configuration.build(_TARGET)
    configuration.prepare(_TARGET)
    self.assertEqual(configuration.build(_TARGET), config_lib.DeepSeekConfig())

  def test_what_is_written_down_builds_the_same(self):
    configuration.prepare(
      _TARGET, [str(self.file)], ["DeepSeekConfig.q_lora_rank = None"]
    )
    first = configuration.build(_TARGET)
    saved = configuration.operative()
    self.file.write_text(saved)
    configuration.prepare(_TARGET, [str(self.file)])
    self.assertEqual(configuration.build(_TARGET), first)
    self.assertIn("# python: ", saved)

  def test_defaults_that_gin_did_not_build_are_written_down(self):
    target = "dsx.training.pretraining.Pretraining"
    configuration.prepare(target, ["gin_configs/runs/v3_small.gin"])
    run = configuration.build(target)
    saved = configuration.operative()
    self.assertIn(f"# default: optimizer.AdamW.b2 = {run.optimizer.b2}", saved)
    self.assertNotIn("# default: config.DeepSeekConfig", saved)
    self.file.write_text(saved)
    configuration.prepare(target, [str(self.file)])
    self.assertEqual(configuration.build(target), run)

  def test_refused_value_names_the_line_that_bound_it(self):
    self.file.write_text(_TINY.replace("64", "-1"))
    configuration.prepare(_TARGET, [str(self.file)])
    message = f"^{self.file}:4: hidden_size=-1: expected a positive number"
    with self.assertRaisesRegex(ValueError, message):
      configuration.build(_TARGET)

  def test_build_before_prepare(self):
    script = """
      from experiments import configuration
      configuration.build("dsx.models.config.DeepSeekConfig")
    """
    result = subprocess.run(
      [sys.executable, "-c", textwrap.dedent(script)],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    self.assertIn("call cli.run or configuration.prepare", result.stderr)


class ProvenanceTest(absltest.TestCase):
  def test_names_versions_and_commit(self):
    found = provenance.provenance()
    self.assertContainsSubset(
      {"python", "platform", "command", "commit", "jax", "flax", "gin-config"},
      found,
    )

  def test_commit_of_this_folder_and_of_no_repository(self):
    folder = pathlib.Path(self.create_tempdir().full_path)
    self.assertEqual(provenance.commit(folder), "unknown")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=b"]
    for command in (["init", "-q"], ["add", "f"], ["commit", "-qm", "m"]):
      (folder / "f").write_text("1")
      subprocess.run([*git, *command], check=True)
    clean = provenance.commit(folder)
    self.assertRegex(clean, "^[0-9a-f]{40}$")
    (folder / "f").write_text("2")
    self.assertEqual(provenance.commit(folder), f"{clean}+changes")


class ExplanationTest(parameterized.TestCase):
  @parameterized.parameters(
    ("raise ValueError('a=1: expected 2; change it')", "dsx/x.py", True),
    ("int('1x')", "dsx/x.py", False),
    ("raise KeyError('a')", "dsx/x.py", False),
    ("raise ValueError('shapes')", "elsewhere/x.py", False),
    ("open('/nowhere/x')", "elsewhere/x.py", True),
  )
  def test_only_what_was_written_for_a_reader(self, line, filename, explained):
    filename = str(_ROOT / filename)
    linecache.cache[filename] = (len(line), None, [line], filename)
    self.addCleanup(linecache.cache.pop, filename)
    try:
      exec(compile(line, filename, "exec"))
    except Exception as error:
      self.assertEqual(screen.explanation(error) is not None, explained)
    else:
      self.fail("nothing was raised")

  def test_one_line(self):
    error = OSError(28, "No space left on device", "/a\nb")
    self.assertEqual(
      screen.explanation(error), "/a\\nb: No space left on device"
    )


class LoggingTest(absltest.TestCase):
  def test_only_our_own_info_passes(self):
    def passes(path, level):
      record = logging.LogRecord("any", level, path, 1, "text", (), None)
      return screen._Ours().filter(record)

    ours = str(_ROOT / "dsx" / "training" / "loop.py")
    self.assertTrue(passes(ours, logging.INFO))
    self.assertFalse(passes("/site-packages/jax/x.py", logging.INFO))
    self.assertTrue(passes("/site-packages/jax/x.py", logging.WARNING))
    self.assertFalse(passes(f"{_ROOT}/dsx_other/x.py", logging.INFO))


if __name__ == "__main__":
  absltest.main()
