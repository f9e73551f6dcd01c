"""Where processes meet: by hand, and in environments made like real ones."""

import contextlib
import http.server
import os
import threading
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
from jax._src.clusters import cloud_tpu_cluster
from jax._src.clusters import cluster as jax_cluster

from dsx.parallel import cluster

_SLURM = {
  "SLURM_JOB_ID": "4660",
  "SLURM_STEP_NODELIST": "node[007-008,012],far3",
  "SLURM_STEP_NUM_NODES": "4",
  "SLURM_NTASKS": "32",
  "SLURM_PROCID": "17",
  "SLURM_LOCALID": "1",
}
_OPEN_MPI = {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "6",
  "OMPI_COMM_WORLD_RANK": "4",
  "OMPI_COMM_WORLD_LOCAL_RANK": "0",
  "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
_GKE = {"TPU_WORKER_HOSTNAMES": "localhost,host1,host2", "TPU_WORKER_ID": "2"}
# Of two slices, this is the second; what MEGASCALE names is the first's host.
_SLICES = {
  "MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1:8081",
  "MEGASCALE_NUM_SLICES": "2",
  "MEGASCALE_SLICE_ID": "1",
}


@contextlib.contextmanager
def _environment(*, tpu: bool = False, **values: str):
  """Nothing in the environment but `values`; on a TPU VM or not."""
  with (
    mock.patch.dict(os.environ, values, clear=True),
    mock.patch.object(cloud_tpu_cluster, "running_in_cloud_tpu_vm", tpu),
    mock.patch.object(jax_cluster, "running_in_cloud_tpu_vm", tpu),
  ):
    yield


class _Metadata(http.server.BaseHTTPRequestHandler):
  """The metadata server of a TPU VM that is worker 1 of a slice of two."""

  attributes = {
    "agent-worker-number": "1",
    "worker-network-endpoints": "a:b:127.0.0.1,c:d:10.0.0.8",
    "tpu-env": "ACCELERATOR_TYPE: 'v5p-16'\nZONE: 'moon'",
  }

  def do_GET(self):
    text = self.attributes.get(self.path.rpartition("/")[2])
    self.send_response(200 if text else 404)
    self.end_headers()
    self.wfile.write((text or "").encode())

  def log_message(self, *unused):
    pass


class ClusterTest(parameterized.TestCase):
  @parameterized.named_parameters(
    # One of eight tasks of its machine, each with a GPU of its own.
    ("slurm", _SLURM, ("node007:62004", 32, 17, (1,))),
    # One task a machine has all its GPUs.
    (
      "slurm_machines",
      _SLURM | {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "0"},
      ("node007:62004", 4, 3, None),
    ),
    ("open_mpi", _OPEN_MPI, ("10.96.0.1:62624", 6, 4, (0,))),
    (
      "open_mpi_machines",
      _OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1"},
      ("10.96.0.1:62624", 6, 4, None),
    ),
  )
  def test_detect(self, environment, expected):
    with _environment(**environment):
      found = cluster.detect()
    self.assertEqual(
      (
        found.coordinator_address,
        found.num_processes,
        found.process_id,
        found.local_device_ids,
      ),
      expected,
    )

  @parameterized.named_parameters(
    ("slice", _GKE, ("localhost:8482", 3, 2)),
    ("slices", _GKE | _SLICES, ("127.0.0.1:8482", 6, 5)),
  )
  def test_detect_a_tpu_pod_of_kubernetes(self, environment, expected):
    no_metadata = {"MEGASCALE_COORDINATOR_ADDRESS": "", **environment}
    no_metadata = {"MEGASCALE_NUM_SLICES": "1", **no_metadata}
    no_metadata = {"MEGASCALE_SLICE_ID": "0", **no_metadata}
    with _environment(tpu=True, TPU_SKIP_MDS_QUERY="1", **no_metadata):
      found = cluster.detect()
    self.assertEqual(
      (found.coordinator_address, found.num_processes, found.process_id),
      expected,
    )
    self.assertIsNone(found.local_device_ids)

  def test_detect_a_tpu_vm(self):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    self.addCleanup(server.server_close)
    self.addCleanup(server.shutdown)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_address[1]}"
    with _environment(tpu=True, GCE_METADATA_IP=address):
      found = cluster.detect()
    self.assertEqual(
      found,
      cluster.Meeting(
        coordinator_address="127.0.0.1:8482", num_processes=2, process_id=1
      ),
    )

  def test_what_is_given_wins(self):
    with _environment(**_SLURM):
      found = cluster.detect("login:1234", process_id=3)
    self.assertEqual(found.coordinator_address, "login:1234")
    self.assertEqual((found.num_processes, found.process_id), (32, 3))

  def test_open_mpi_5_lacks_the_address_alone(self):
    environment = dict(_OPEN_MPI)
    del environment["OMPI_MCA_orte_hnp_uri"]
    with _environment(**environment):
      self.assertEqual(
        cluster.detect("head:1234"),
        cluster.Meeting(
          coordinator_address="head:1234",
          num_processes=6,
          process_id=4,
          local_device_ids=(0,),
        ),
      )
      with self.assertRaisesWithLiteralMatch(
        ValueError,
        "--detect_processes: found coordinator_address=None, num_processes=6, "
        "process_id=4; expected a TPU pod, or to be started by srun or mpirun; "
        "give what is missing",
      ):
        cluster.detect()

  def test_nothing_to_detect(self):
    with (
      _environment(),
      self.assertRaisesWithLiteralMatch(
        ValueError,
        "--detect_processes: found coordinator_address=None, num_processes="
        "None, process_id=None; expected a TPU pod, or to be started by srun "
        "or mpirun; give what is missing",
      ),
    ):
      cluster.detect()

  def test_an_environment_that_says_nonsense(self):
    with (
      _environment(**_SLURM | {"SLURM_PROCID": "first"}),
      self.assertRaisesRegex(
        ValueError,
        r"^--detect_processes: the environment cannot be understood \(invalid "
        r"literal .*'first'\); give coordinator_address, num_processes and "
        r"process_id$",
      ),
    ):
      cluster.detect()

  def test_given(self):
    self.assertIsNone(cluster.given(None, None, None))
    self.assertEqual(cluster.given("[::1]:80", 2, 0).coordinator, ("::1", 80))

  @parameterized.parameters(
    (
      ("host:1", 2, None),
      "coordinator_address='host:1', num_processes=2, process_id=None: "
      "expected all three or none; give the others too, or --detect_processes",
    ),
    (
      ("host", 2, 0),
      "coordinator_address='host': expected host:port; write the name or "
      "address of the machine of process 0 and a free port of it",
    ),
    (
      ("host:70000", 2, 0),
      "coordinator_address='host:70000': expected host:port; write the name or "
      "address of the machine of process 0 and a free port of it",
    ),
    (
      ("host:1", 2, 2),
      "process_id=2: expected one of 0 to 1, num_processes=2 of them; count "
      "from 0",
    ),
  )
  def test_bad_input(self, given, message):
    with self.assertRaisesWithLiteralMatch(ValueError, message):
      cluster.given(*given)


if __name__ == "__main__":
  absltest.main()
