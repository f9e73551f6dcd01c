"""Values cannot break out of what is rendered: it is run or read, and compared.

Every test takes texts that mean something to a shell, to YAML or to Kubernetes,
and finds exactly these arguments, variables and folders again.
"""

import json
import pathlib
import re
import shlex
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import hypothesis
from hypothesis import strategies as st
import yaml

from experiments.bindings import problems
from experiments.launching import job as job_lib
from experiments.launching import jobset
from experiments.launching import shell
from experiments.launching import slurm
from experiments.launching import tpu_vm
from experiments.launching import xpk
from tests.experiments import rendered

_MODULE = ["-m", "experiments.pretrain"]
_SETTINGS = {
  "slurm": slurm.Slurm(partition="gpu", time_limit="1-00:00:00"),
  "jobset": jobset.JobSet(image="registry.io/dsx:1.0", volume_claim="runs:/s"),
  "xpk": xpk.Xpk(cluster="c", tpu_type="v5p-16", image="registry.io/dsx"),
  "tpu_vm": tpu_vm.TpuVm(
    zone="us-east5-a", tpu_type="v5p-16", runtime_version="v2-alpha-tpuv5"
  ),
}
_FREE = {
  slurm.Slurm: {
    "partition": "gpu",
    "account": "me",
    "qos": "high",
    "time_limit": "10",
  },
  jobset.JobSet: {
    "image": "a",
    "volume_claim": "runs:/s",
    "accelerator": "tpu-v5p-slice",
    "topology": "2x2x1",
    "namespace": "n",
    "queue": "q",
  },
  xpk.Xpk: {
    "cluster": "c",
    "tpu_type": "v5p-16",
    "image": "a",
    "project": "p",
    "zone": "z",
  },
  tpu_vm.TpuVm: {
    "zone": "z",
    "tpu_type": "v5p-16",
    "runtime_version": "v2",
    "project": "p",
  },
}
_some = hypothesis.settings(
  max_examples=60,
  deadline=None,
  suppress_health_check=list(hypothesis.HealthCheck),
)
_words = st.lists(rendered.TEXTS, max_size=6)


def _machine() -> rendered.Machine:
  folder = tempfile.mkdtemp(dir=absltest.TEST_TMPDIR.value)
  return rendered.Machine(pathlib.Path(folder))


class RenderingTest(parameterized.TestCase):
  def assert_ran(self, machine, words, variables, folder):
    """The one program that was run got exactly these."""
    where, got, environment = machine.calls()[-1]
    self.assertEqual(where, str(folder))
    self.assertEqual(got, words)
    for name, value in variables.items():
      self.assertEqual(environment[name], value)

  @_some
  @hypothesis.given(_words, rendered.VARIABLES, rendered.FOLDERS)
  def test_slurm(self, words, variables, name):
    machine = _machine()
    machine.program("srun", 'shift; exec "$@"\n')
    machine.program("python")
    folder = machine.folder / name
    folder.mkdir(exist_ok=True)
    job = rendered.job(
      arguments=tuple(words), environment=variables, folder=str(folder)
    )
    text = _SETTINGS["slurm"].render(job)
    done = machine.script(text)
    self.assertEqual(done.returncode, 0, done.stderr)
    self.assertEqual(machine.calls()[0][1][0], "--kill-on-bad-exit=1")
    expected = [*_MODULE, *words, "--detect_processes"]
    self.assert_ran(machine, expected, variables, folder)
    # sbatch reads directives up to the first command and no further.
    head = text.partition("\nset -u\n")[0]
    plain = _SETTINGS["slurm"].render(rendered.job())
    self.assertEqual(head, plain.partition("\nset -u\n")[0])

  @_some
  @hypothesis.given(_words, rendered.VARIABLES, rendered.FOLDERS)
  def test_tpu_vm(self, words, variables, name):
    machine = _machine()
    machine.program(
      "gcloud",
      'for w in "$@"; do [[ $w == --command=* ]] && c=${w#*=}; done\n'
      'exec /bin/sh -c "$c"\n',
    )
    machine.program("python")
    folder = machine.folder / name
    folder.mkdir(exist_ok=True)
    job = rendered.job(
      arguments=tuple(words),
      environment=variables,
      folder=str(folder),
      workdir=str(folder / "run"),
    )
    done = machine.script(_SETTINGS["tpu_vm"].render(job), "run")
    self.assertEqual(done.returncode, 0, done.stderr)
    expected = [*_MODULE, *words, "--detect_processes"]
    self.assert_ran(machine, expected, variables, folder)
    self.assertLen(machine.calls(), 3)  # what is saved, all hosts, the program

  @_some
  @hypothesis.given(_words, rendered.VARIABLES, rendered.FOLDERS)
  def test_xpk(self, words, variables, name):
    machine = _machine()
    machine.program("xpk")
    machine.program("python")
    folder = machine.folder / name
    folder.mkdir(exist_ok=True)
    job = rendered.job(
      arguments=tuple(words), environment=variables, folder=str(folder)
    )
    done = machine.script(_SETTINGS["xpk"].render(job))
    self.assertEqual(done.returncode, 0, done.stderr)
    ((_, flags, _),) = machine.calls()
    self.assertEqual(flags[:2], ["workload", "create"])
    (command,) = [f for f in flags if f.startswith("--command=")]
    command = command.removeprefix("--command=")
    self.assertRegex(command, r"\A[ -~]+\Z")
    # xpk's way: a template, a block of YAML, a shell in a container.
    block = "run:\n- |\n  echo {0}\n  ({0}) & PID=$!;\n  wait $PID\n"
    (script,) = yaml.safe_load(block.format(command))["run"]
    script = rendered.expanded(script, {"HOME": "/evil", "DSX_PROCESS": "1"})
    self.assertIn(f"({command}) &", script)
    done = machine.bash("-c", f"({command}) & wait $!")
    self.assertEqual(done.returncode, 0, done.stderr)
    expected = [*_MODULE, *words, "--detect_processes"]
    self.assert_ran(machine, expected, variables, folder)

  @_some
  @hypothesis.given(_words, rendered.VARIABLES, rendered.FOLDERS)
  def test_jobset(self, words, variables, name):
    job = rendered.job(
      arguments=tuple(words), environment=variables, folder=f"/a/{name}"
    )
    text = _SETTINGS["jobset"].render(job)
    self.assertRegex(text, r"\A[ -~\n]+\Z")
    found = yaml.safe_load(text)
    container = self._container(found)
    present = {"DSX_PROCESS": "1", "HOME": "/evil"}
    command = [rendered.expanded(w, present) for w in container["command"]]
    self.assertEqual(
      command,
      [
        "python",
        *_MODULE,
        *words,
        "--coordinator_address=v3-small-run-0-0.v3-small:12345",
        "--num_processes=2",
        "--process_id=1",
      ],
    )
    self.assertEqual(
      {
        e["name"]: rendered.expanded(e["value"], present)
        for e in container["env"][1:]
      },
      variables,
    )
    self.assertEqual(container["workingDir"], f"/a/{name}")
    # In quotes no reader of YAML takes a text for anything else.
    tokens = [t for t in yaml.scan(text) if isinstance(t, yaml.ScalarToken)]
    quoted = [token.value for token in tokens if token.style == '"']
    self.assertContainsSubset(container["command"], quoted)
    # Apart from these values it is what harmless ones give.
    plain = yaml.safe_load(_SETTINGS["jobset"].render(rendered.job()))
    for manifest in (found, plain):
      for key in ("command", "env", "workingDir"):
        del self._container(manifest)[key]
    self.assertEqual(found, plain)

  def _container(self, manifest):
    (run,) = manifest["spec"]["replicatedJobs"]
    (container,) = run["template"]["spec"]["template"]["spec"]["containers"]
    return container

  @parameterized.parameters(*_FREE)
  def test_settings_hold_or_are_refused(self, cls):
    """No text at all adds a line, a flag or a key to what is rendered."""
    usual = _FREE[cls]
    shape = self._shape(cls(**usual).render(rendered.job()))
    accepted = set()

    @hypothesis.settings(_some, max_examples=300)
    @hypothesis.given(
      st.sampled_from(list(usual)),
      st.one_of(
        rendered.TEXTS,
        st.from_regex(r"[a-z]{1,3}[-a-z0-9.:/_x]{0,8}", fullmatch=True),
        st.from_regex(r"\d{1,2}(x\d){1,2}", fullmatch=True),
        rendered.TEXTS.map(lambda text: f"tpu{text}"),
        rendered.TEXTS.map(lambda text: f"a:/{text}"),
      ),
    )
    def holds(field, value):
      try:
        settings = cls(**{**usual, field: value})
      except problems.Refused as error:
        self.assertLen(str(error).splitlines(), 1)
        return
      accepted.add(field)
      text = settings.render(rendered.job())
      self.assertEqual(self._shape(text), shape)
      if field != "volume_claim":  # a path may have spaces
        self.assertRegex(value, r"\A[A-Za-z0-9][A-Za-z0-9_.,:/@x+-]*\Z")
        self.assertIn(value, text)

    holds()
    self.assertNotEmpty(accepted)

  def _shape(self, text: str) -> list[str]:
    """Every line, up to where a value may begin."""
    return [
      re.match(r"[\s-]*[\w./#-]*( --[\w-]+)?", line)[0]
      for line in text.splitlines()
    ]

  @_some
  @hypothesis.given(rendered.TEXTS)
  def test_names_are_dns_labels_or_refused(self, text):
    proposed = job_lib.name_of(text)
    self.assertEqual(rendered.job(name=proposed).name, proposed)
    try:
      job = rendered.job(name=text)
    except problems.Refused as error:
      self.assertIn("DNS-1123", str(error))
    else:
      self.assertRegex(job.name, r"\A[a-z]([-a-z0-9]{0,37}[a-z0-9])?\Z")

  @_some
  @hypothesis.given(_words)
  def test_plain_words_are_what_bash_reads(self, words):
    line = shell.plain_words(words)
    machine = _machine()
    machine.program("show")
    self.assertEqual(machine.bash("-c", f"show {line}").returncode, 0)
    self.assertEqual(machine.calls()[0][1], words)
    self.assertIsNone(re.search(r"[^ -~]|\$[^']|`|\"", line))

  def test_a_careless_renderer_would_be_caught(self):
    """The programs that write things down do show what breaks out."""
    machine = _machine()
    machine.program("srun")
    machine.bash("-c", "srun '" + "a'; srun broken; '" + "'")
    calls = [words for _, words, _ in machine.calls()]
    self.assertEqual(calls, [["a"], ["broken"]])
    text = rendered.expanded("$(A) $$(A) $(B) $C", {"A": "1"})
    self.assertEqual(text, "1 $(A) $(B) $C")


class SupervisionTest(parameterized.TestCase):
  """Restarts, counted by the calls of a fake srun."""

  def _calls(self, codes, saving=(), most=2) -> tuple[int, int, str]:
    """Exit code, calls and errors, where the n-th call ends with codes[n].

    The last code is that of all later calls; calls in `saving` save a
    checkpoint.
    """
    machine = _machine()
    workdir = machine.folder / "run"
    (workdir / "checkpoints").mkdir(parents=True)
    (machine.folder / "codes").write_text("\n".join(map(str, codes)) + "\n")
    machine.program(
      "srun",
      'n=$(wc -l < "$RECORDS/order")\n'
      + f'case " {" ".join(map(str, saving))} " in *" $n "*)'
      + f" mkdir {shlex.quote(str(workdir))}/checkpoints/$n ;; esac\n"
      + f'c=$(sed -n "${{n}}p" {shlex.quote(str(machine.folder))}/codes)\n'
      + f"exit ${{c:-{codes[-1]}}}\n",
    )
    job = rendered.job(workdir=str(workdir), max_restarts=most)
    done = machine.script(slurm.Slurm().render(job))
    return done.returncode, len(machine.calls()), done.stderr.decode()

  @parameterized.named_parameters(
    ("done", [0], (), 0, 1),
    ("second_time_lucky", [75, 0], (), 0, 2),
    ("wrong_flags_are_final", [2], (), 2, 1),
    ("gives_up", [75], (), 75, 3),
    ("progress_begins_the_count_anew", [75], (2, 3), 75, 5),
    ("no_progress_at_the_start_counts", [1], (1,), 1, 3),
  )
  def test_restarts(self, codes, saving, code, calls):
    found_code, found_calls, errors = self._calls(codes, saving)
    self.assertEqual((found_code, found_calls), (code, calls), errors)

  @parameterized.named_parameters(
    ("stopped", "null", True, 1),
    ("stopped_without_a_checkpoint", "null", False, 0),
    ("finished", '"0a"', True, 0),
  )
  def test_a_job_at_its_time_limit_is_queued_again(self, digest, saves, calls):
    machine = _machine()
    workdir = machine.folder / "a run"
    (workdir / "checkpoints").mkdir(parents=True)
    text = json.dumps({"state_digest": json.loads(digest)}, indent=1)
    machine.program(
      "srun",
      f"echo {shlex.quote(text)} > {shlex.quote(str(workdir))}/summary.json\n"
      + f"mkdir {shlex.quote(str(workdir))}/checkpoints/7\n" * saves,
    )
    machine.program("scontrol")
    job = rendered.job(workdir=str(workdir))
    script = "export SLURM_JOB_ID=42\n" + slurm.Slurm().render(job)
    done = machine.script(script)
    self.assertEqual(done.returncode, 0, done.stderr)
    found = [words for _, words, _ in machine.calls()[1:]]
    self.assertEqual(found, [["requeue", "42"]] * calls)

  def test_says_why(self):
    _, _, errors = self._calls([75, 75, 9])
    self.assertEqual(
      errors.splitlines(),
      [
        "exit code 75; restart 1 of 2",
        "exit code 75; restart 2 of 2",
        "exit code 9, and no progress in 3 attempts",
      ],
    )


if __name__ == "__main__":
  absltest.main()
