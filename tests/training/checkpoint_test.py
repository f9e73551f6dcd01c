import os
import pathlib
import random
import resource
import subprocess
import sys
import threading

from absl.testing import absltest
from absl.testing import parameterized
import chex
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dsx.training import checkpoint
from dsx.training import commit
from tests.training import killed_saver


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: tuple
  key: jax.Array


def _sharding(*axes, shape=(4, 2)):
  mesh = jax.make_mesh(
    shape, ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def _state(seed: int = 0, shape=(4, 2)) -> State:
  values = np.random.default_rng(seed).normal(size=(16, 64))
  params = {
    "w": jax.device_put(
      values.astype(np.float32), _sharding("a", "b", shape=shape)
    ),
    "norm": jax.device_put(
      jnp.asarray(values[0], jnp.bfloat16), _sharding(shape=shape)
    ),
  }
  whole = _sharding(shape=shape)
  opt_state = jax.tree.map(
    lambda x: jax.device_put(x, x.sharding if x.ndim == 2 else whole),
    optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params),
  )
  return State(
    step=jax.device_put(jnp.int32(seed), whole),
    params=params,
    opt_state=opt_state,
    key=jax.device_put(jax.random.key(seed), whole),
  )


def _abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


def _plain(state):
  return jax.tree.map(
    np.asarray, state.replace(key=jax.random.key_data(state.key))
  )


def _flip(file: pathlib.Path, bit: int) -> None:
  data = bytearray(file.read_bytes())
  data[bit // 8] ^= 1 << bit % 8
  file.write_bytes(data)


def _files(step: pathlib.Path) -> list[pathlib.Path]:
  return sorted(path for path in step.rglob("*") if path.is_file())


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.root = pathlib.Path(self.create_tempdir().full_path) / "checkpoints"

  def _open(self, **kwargs):
    checkpoints = checkpoint.Checkpointer(self.root, **kwargs)
    self.addCleanup(checkpoints.close)
    return checkpoints

  def _saved(self, *steps, **kwargs):
    checkpoints = self._open(**kwargs)
    for step in steps:
      checkpoints.save(step, _state(step), {"tokens": 100 * step})
    checkpoints.wait()
    return checkpoints

  def _assert_is(self, restored, step: int, state=None):
    self.assertEqual(restored.step, step)
    self.assertEqual(restored.metadata, {"tokens": 100 * step})
    chex.assert_trees_all_equal(_plain(restored.arrays), _plain(_state(step)))
    chex.assert_trees_all_equal_dtypes(restored.arrays, _state(step))

  def _assert_one_line(self, caught):
    self.assertNotIn("\n", str(caught.exception))
    self.assertIn(str(self.root), str(caught.exception))

  # What comes back.

  @parameterized.parameters((4, 2), (2, 4), (1, 1), (8, 1))
  def test_restores_every_bit_on_any_mesh(self, *shape):
    self._saved(3)
    target = _abstract(_state(shape=shape))
    restored = self._open().restore(target)
    self._assert_is(restored, 3)
    self.assertEqual(restored.notes, [])
    for found, wanted in zip(
      jax.tree.leaves(restored.arrays), jax.tree.leaves(target), strict=True
    ):
      self.assertTrue(
        found.sharding.is_equivalent_to(wanted.sharding, found.ndim)
      )

  def test_restores_classes_and_metadata(self):
    checkpoints = self._open()
    metadata = {"a": [1, None, {"b": "ü"}], "c": 1.5, "d": (1, 2)}
    checkpoints.save(0, _state(), metadata)
    restored = checkpoints.restore(_abstract(_state()))
    self.assertIsInstance(restored.arrays, State)
    self.assertEqual(
      jax.tree.structure(restored.arrays), jax.tree.structure(_state())
    )
    self.assertEqual(restored.metadata, metadata | {"d": [1, 2]})
    self.assertEqual(checkpoints.metadata(), restored.metadata)

  def test_restores_the_step_asked_for_or_none(self):
    checkpoints = self._saved(1, 2)
    self._assert_is(checkpoints.restore(_abstract(_state()), step=1), 1)
    self.assertEqual(checkpoints.metadata(1), {"tokens": 100})
    with self.assertRaisesRegex(
      checkpoint.CheckpointError, "no good step 5 in .* 'manifest.json' is miss"
    ) as caught:
      checkpoints.restore(_abstract(_state()), step=5)
    self._assert_one_line(caught)

  def test_restores_a_part(self):
    checkpoints = self._saved(1)
    target = {"params": _abstract(_state().params)}
    found = checkpoints.restore(target, partial=True).arrays
    chex.assert_trees_all_equal(found["params"], _state(1).params)

  def test_training_goes_on_during_a_save(self):
    checkpoints = self._open()
    step = jax.jit(
      lambda params: jax.tree.map(lambda x: x * 2 + 1, params),
      donate_argnums=0,
    )
    params, expected = _state().params, {}
    for number in range(6):
      expected[number] = jax.tree.map(np.array, params)
      checkpoints.save(number, {"params": params}, {})
      params = step(params)
    checkpoints.wait()
    for number in checkpoints.steps():
      found = checkpoints.restore({"params": params}, step=number)
      chex.assert_trees_all_equal(found.arrays["params"], expected[number])

  # Which steps there are.

  def test_nothing_there(self):
    checkpoints = self._open()
    self.assertEqual(checkpoints.steps(), [])
    for ask in (
      checkpoints.metadata,
      lambda: checkpoints.restore(_abstract(_state())),
    ):
      with self.assertRaisesRegex(
        checkpoint.CheckpointError, "no good step in .*: there is none"
      ):
        ask()
    self.assertFalse(self.root.exists())

  @parameterized.parameters(
    (1, None, [6]),
    (2, None, [5, 6]),
    (2, 3, [0, 3, 5, 6]),
    (9, 2, list(range(7))),
  )
  def test_keeps_the_newest_and_every_nth(self, newest, every, expected):
    checkpoints = self._saved(*range(7), max_to_keep=newest, keep_every=every)
    self.assertEqual(checkpoints.steps(), expected)
    names = sorted(path.name for path in self.root.iterdir())
    self.assertEqual(names, sorted(map(str, expected)))

  def test_a_step_that_is_not_newer_is_refused(self):
    checkpoints = self._saved(4)
    for step in (4, 3):
      with self.assertRaisesRegex(
        checkpoint.CheckpointError, f"holds step 4, step {step} is not newer"
      ) as caught:
        checkpoints.save(step, _state(), {})
      self._assert_one_line(caught)
    self._assert_is(checkpoints.restore(_abstract(_state())), 4)

  def test_unfinished_steps_are_passed_over_and_cleaned_away(self):
    checkpoints = self._saved(1, 2)
    (self.root / "2" / "manifest.json").unlink()
    (self.root / "3.orbax-checkpoint-tmp").mkdir()
    self.assertEqual(checkpoints.steps(), [1])
    restored = checkpoints.restore(_abstract(_state()))
    self._assert_is(restored, 1)
    self.assertEqual(
      restored.notes,
      [
        "step 2 is passed over: 'manifest.json' is missing, its save did not"
        " finish"
      ],
    )
    checkpoints.save(2, _state(2), {"tokens": 200})
    checkpoints.wait()
    self.assertEqual(sorted(os.listdir(self.root)), ["1", "2"])
    self._assert_is(checkpoints.restore(_abstract(_state())), 2)

  # Damage.

  def test_damaged_steps_are_passed_over_with_a_warning(self):
    checkpoints = self._saved(1, 2, 3)
    _flip(max(_files(self.root / "3"), key=lambda f: f.stat().st_size), 999)
    _flip(self.root / "2" / "manifest.json", 999)
    with self.assertLogs("absl", "WARNING") as logs:
      restored = checkpoints.restore(_abstract(_state()))
    self._assert_is(restored, 1)
    self.assertLen(restored.notes, 2)
    self.assertRegex(
      restored.notes[0], r"^step 3 is passed over: 'arrays/\S+' is damaged"
    )
    self.assertRegex(
      restored.notes[1], "^step 2 is passed over: 'manifest.json' is damaged"
    )
    self.assertIn(restored.notes[0], "\n".join(logs.output))
    with self.assertRaisesRegex(checkpoint.CheckpointError, "no good step 3"):
      checkpoints.restore(_abstract(_state()), step=3)

  def test_a_run_goes_on_past_damaged_steps(self):
    checkpoints = self._saved(1, 2, 3, max_to_keep=1, keep_every=1)
    for step in ("2", "3"):
      _flip(_files(self.root / step)[0], 5)
    checkpoints = self._open(max_to_keep=1)
    checkpoints.restore(_abstract(_state()))
    for step in (2, 3, 4):
      checkpoints.save(step, _state(step), {"tokens": 100 * step})
      checkpoints.wait()
      self._assert_is(checkpoints.restore(_abstract(_state())), step)
    names = sorted(os.listdir(self.root))
    self.assertEqual(names, ["2.damaged", "3.damaged", "4"])

  def test_all_damaged(self):
    checkpoints = self._saved(1, 2)
    for step in ("1", "2"):
      _flip(_files(self.root / step)[0], 5)
    with self.assertRaisesRegex(
      checkpoint.CheckpointError, "no good step in .*step 2 .*; step 1 "
    ) as caught:
      checkpoints.restore(_abstract(_state()))
    self._assert_one_line(caught)

  def test_two_hundred_flipped_bits_are_seen(self):
    checkpoints = self._saved(1)
    step, target = self.root / "1", _abstract(_state())
    files = _files(step)
    self.assertGreater(len(files), 10)
    rng = random.Random(0)
    for trial in range(200):
      # The small files get their share, or nearly all flips would hit chunks.
      file = rng.choice(files)
      bit = rng.randrange(8 * max(file.stat().st_size, 1))
      if not file.stat().st_size:
        continue
      _flip(file, bit)
      with self.assertRaises(
        checkpoint.CheckpointError, msg=(file, bit, trial)
      ):
        checkpoints.restore(target, step=1)
      _flip(file, bit)
    self._assert_is(checkpoints.restore(target), 1)

  def test_each_file_truncated_or_deleted_is_seen(self):
    checkpoints = self._saved(1)
    step, target = self.root / "1", _abstract(_state())
    for file in _files(step):
      data = file.read_bytes()
      for change in (
        lambda file=file, data=data: file.write_bytes(data[: len(data) // 2]),
        lambda file=file, data=data: file.write_bytes(data + b"\0"),
        lambda file=file: file.unlink(),
      ):
        change()
        with self.assertRaises(checkpoint.CheckpointError, msg=file):
          checkpoints.restore(target, step=1)
        file.write_bytes(data)
    self._assert_is(checkpoints.restore(target), 1)

  def test_links_out_of_the_directory_are_not_followed(self):
    checkpoints = self._saved(1)
    file = max(_files(self.root / "1"), key=lambda f: f.stat().st_size)
    outside = self.root.parent / "outside"
    file.rename(outside)
    file.symlink_to(outside)
    with self.assertRaisesRegex(
      checkpoint.CheckpointError, "is a symbolic link"
    ) as caught:
      checkpoints.restore(_abstract(_state()))
    self._assert_one_line(caught)

  def test_another_config_is_an_error_and_no_reason_to_fall_back(self):
    checkpoints = self._saved(1, 2)
    target = _abstract(_state())
    target = target.replace(params=target.params | {"x": target.params["w"]})
    with self.assertRaisesRegex(
      checkpoint.CheckpointError, r"'params/x' is not in checkpoint \S+/2"
    ) as caught:
      checkpoints.restore(target)
    self._assert_one_line(caught)

  def test_configs_are_told_apart(self):
    digest = checkpoint.config_digest({"layers": 2, "heads": 4})
    self.assertEqual(
      digest, checkpoint.config_digest({"heads": 4, "layers": 2})
    )
    metadata = {"config_digest": digest}
    checkpoint.check_config(metadata, digest, where="x")
    other = checkpoint.config_digest({"layers": 3, "heads": 4})
    for saved in (metadata, {}):
      with self.assertRaisesRegex(
        checkpoint.CheckpointError,
        "^/w/5 is of another config .* another workdir",
      ):
        checkpoint.check_config(saved, other, where="/w/5")

  # Saves that fail.

  # TensorStore reports the other arrays' failures to a loop that Orbax closed.
  @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
  def test_a_full_disk_is_one_line_and_the_last_step_stays(self):
    checkpoints = self._saved(1)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old[1]))
    try:
      with self.assertRaisesRegex(
        checkpoint.CheckpointError,
        r"^step 2 was not saved to \S+: File too large \(complete steps: \[1\]",
      ) as caught:
        checkpoints.save(2, _state(2), {})
        checkpoints.wait()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, old)
    self._assert_one_line(caught)
    self._assert_is(checkpoints.restore(_abstract(_state())), 1)
    checkpoints.save(2, _state(2), {"tokens": 200})
    checkpoints.wait()
    self._assert_is(checkpoints.restore(_abstract(_state())), 2)

  def test_an_unwritable_directory_is_one_line(self):
    self.root.parent.mkdir(exist_ok=True)
    self.root.write_text("a file")
    checkpoints = self._open()
    with self.assertRaisesRegex(
      checkpoint.CheckpointError, "step 2 was not saved to .*: .*File exists"
    ) as caught:
      checkpoints.save(2, _state(2), {})
    self._assert_one_line(caught)

  def test_a_background_error_is_raised_once_by_the_next_call(self):
    checkpoints = self._saved(1)
    started, go = threading.Event(), threading.Event()

    def fail(*unused, **kwargs):
      del unused, kwargs
      started.set()
      go.wait(60)
      raise OSError(5, "Input/output error", "x")

    original = commit.commit
    commit.commit = fail
    try:
      checkpoints.save(2, _state(2), {})
      self.assertTrue(started.wait(60))
      go.set()
      with self.assertRaisesRegex(
        checkpoint.CheckpointError, "step 2 was not saved .*Input/output error"
      ):
        checkpoints.save(3, _state(3), {})
    finally:
      commit.commit = original
    self.assertEqual(checkpoints.steps(), [1])
    checkpoints.wait()
    checkpoints.save(3, _state(3), {})
    checkpoints.close()
    self.assertEqual(checkpoints.steps(), [1, 3])

  def test_a_synchronous_save_is_complete_when_it_returns(self):
    checkpoints = self._open(async_save=False)
    checkpoints.save(1, _state(1), {})
    self.assertEqual(checkpoints.steps(), [1])

  @parameterized.parameters(
    ({"a": 3}, {}, "'a' is int, expected a jax.Array"),
    ({"a": np.ones(2)}, {}, "'a' is ndarray, expected a jax.Array"),
    (None, {"a": float("nan")}, "metadata is not JSON"),
    (None, {"a": object()}, "metadata is not JSON"),
  )
  def test_refuses_what_it_cannot_hold(self, arrays, metadata, line):
    checkpoints = self._open()
    with self.assertRaisesRegex(ValueError, line):
      checkpoints.save(1, arrays or _state(), metadata)
    self.assertFalse(self.root.exists())

  def test_a_step_is_a_number_of_steps(self):
    checkpoints = self._open()
    checkpoints.save(np.int64(1), _state(1), {"tokens": 100})
    self._assert_is(checkpoints.restore(_abstract(_state())), 1)
    with self.assertRaisesRegex(ValueError, "step -1: expected"):
      self._open().save(-1, _state(), {})

  def test_refuses_a_target_without_sharding(self):
    target = {"a": jax.ShapeDtypeStruct((2,), np.float32)}
    with self.assertRaisesRegex(ValueError, "target 'a' has no sharding"):
      self._open().restore(target)

  @parameterized.parameters("max_to_keep", "keep_every", "timeout_seconds")
  def test_refuses_nonsense(self, field):
    with self.assertRaisesRegex(
      ValueError, f"Checkpointer.{field}=0: expected"
    ):
      checkpoint.Checkpointer(self.root, **{field: 0})

  # Kill -9.

  def test_killed_at_random_it_restores_the_newest_complete_step(self):
    script = pathlib.Path(killed_saver.__file__)
    with subprocess.Popen(
      [sys.executable, str(script)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {"PYTHONPATH": str(script.parents[2])},
    ) as saver:
      watchdog = threading.Timer(120, saver.kill)
      watchdog.start()
      try:
        self._kill_and_restore(saver, random.Random(0))
      finally:
        watchdog.cancel()
        saver.stdin.close()

  def _kill_and_restore(self, saver, rng):
    target = {
      name: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=_sharding(None, "b")
      )
      for name, leaf in killed_saver.state(0).items()
    }
    unfinished = 0
    for _ in range(15):
      saver.stdin.write(f"{self.root} {rng.randrange(400)}\n")
      saver.stdin.flush()
      told, killed = map(int, saver.stdout.readline().split())
      self.assertTrue(killed)
      checkpoints = self._open()
      left = os.listdir(self.root) if self.root.exists() else []
      unfinished += len(left) > len(checkpoints.steps())
      if not checkpoints.steps():
        self.assertEqual(told, -1)
        continue
      restored = checkpoints.restore(target)
      self.assertGreaterEqual(restored.step, told)
      self.assertEqual(restored.metadata, {"at": restored.step})
      chex.assert_trees_all_equal(
        restored.arrays, killed_saver.state(restored.step)
      )
    # Else the kills have hit nothing.
    self.assertGreater(unfinished, 0)


if __name__ == "__main__":
  absltest.main()
