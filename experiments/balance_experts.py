"""Says which device should hold which experts, by their measured load.

  python -m experiments.balance_experts --workdir=runs/v3_tiny \\
    --nodes=2 --local=4 --redundant=8
  python -m experiments.generate --checkpoint=runs/v3_tiny --prompt='def ' \\
    --gin.Generation.placement='"runs/v3_tiny/placement.json"' ...

Reads the loads that a run left in its workdir, or --loads, a file of such
records, and prints how much more than the mean the busiest device and the
busiest node of each layer have to do: with experts as they are numbered, and as
placed. Loads that were measured later say what the placement is worth on
others. Writes placement.json and placement.png into the workdir;
docs/placement.md says more. --dry_run writes nothing.
"""

import dataclasses

from absl import flags

from experiments import cli

TARGET = "dsx.training.balancing.Balancing"
# The workdir's own config.gin is no mistake.
ALSO = ("dsx.training.pretraining.Pretraining",)
PLOT = "placement.png"

LOADS = flags.DEFINE_string(
  "loads", None, "File of measured loads; by default the workdir's metrics."
)
NODES = flags.DEFINE_integer("nodes", None, "Machines; by default 1.")
LOCAL = flags.DEFINE_integer("local", None, "Devices of each; by default 8.")
REDUNDANT = flags.DEFINE_integer(
  "redundant", None, "Places for copies of experts, in all; by default none."
)
GROUPS = flags.DEFINE_integer(
  "groups", None, "Of the routing; by default those of the workdir's run."
)
STRATEGY = flags.DEFINE_enum(
  "strategy",
  None,
  ["auto", "hierarchical", "global"],
  "Whether a group of experts stays on one node; by default where it can.",
)


def main(argv):
  """Balances, prints the table and writes the files."""
  del argv
  flags_given = (LOADS, NODES, LOCAL, REDUNDANT, GROUPS, STRATEGY)
  given = {flag.name: flag.value for flag in flags_given}
  given = {name: value for name, value in given.items() if value is not None}
  how = dataclasses.replace(cli.build(TARGET), **given)
  from dsx.parallel import placement_file
  from dsx.training import placement_plot

  workdir = cli.workdir()
  balanced = how.run(workdir)
  print(balanced.table())
  if cli.DRY_RUN.value:
    return
  workdir.mkdir(parents=True, exist_ok=True)
  balanced.placement.write(workdir / placement_file.FILE_NAME)
  placement_plot.write(balanced, workdir / PLOT)
  print(f"\nwrote {workdir / placement_file.FILE_NAME} and {PLOT}")


if __name__ == "__main__":
  cli.run(main, target=TARGET, also=ALSO)
