"""A TFDS data set over the running Python's own standard-library sources.

Nothing is downloaded and nothing of the library is copied into the repository:
the builder reads what is on this machine (`corpus` says which files) and writes
ArrayRecord, which reads back without TensorFlow.
"""

from collections.abc import Iterator
import contextlib
import io
import os
import pathlib

import tensorflow_datasets as tfds

from dsx.data import corpus


class StandardLibrary(tfds.core.GeneratorBasedBuilder):
  """One example a file: `name` (path below the library) and `text`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First version."}
  # tfds looks for lists of download checksums beside the code, through a
  # package that it does not require; nothing is downloaded here.
  code_path = None

  def __init__(self, *, source: corpus.Corpus, survey: corpus.Survey, **kwargs):
    """Makes a builder.

    Args:
      source: the files.
      survey: says which of them are for validation.
      **kwargs: `data_dir` and what else tfds builders take.
    """
    self._source = source
    self._survey = survey
    super().__init__(file_format="array_record", **kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    # Built directly: the usual helper looks for files beside the module.
    return tfds.core.DatasetInfo(
      builder=self,
      description="The sources of Python's standard library.",
      features=tfds.features.FeaturesDict(
        {
          "name": tfds.features.Text(),
          "text": tfds.features.Text(),
        }
      ),
      # In order of names, so that the same sources give the same records.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager  # nothing to download
    return {
      split: self._generate_examples(split) for split in ("train", "validation")
    }

  def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
    documents = self._source.split(split, self._survey)
    for number, document in enumerate(documents):
      yield number, {"name": document.name, "text": document.text}


def standard_library(
  source: corpus.Corpus, survey: corpus.Survey, data_dir: str | os.PathLike
) -> StandardLibrary:
  """Builds the data set below `data_dir`, unless it is there already.

  Args:
    source: the files.
    survey: of `source`.
    data_dir: a folder for TFDS data sets.

  Returns:
    The prepared builder; `as_data_source(split)` reads it.
  """
  held_out = round(1e4 * source.validation_fraction)
  builder = StandardLibrary(
    source=source,
    survey=survey,
    # By content, so that several Pythons can share a folder.
    data_dir=pathlib.Path(data_dir, f"{source.digest()[:16]}_{held_out}"),
  )
  tfds.disable_progress_bar()
  with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
    builder.download_and_prepare(
      download_config=tfds.download.DownloadConfig(
        # Else a bucket is asked for a prepared copy, which needs the network.
        try_download_gcs=False,
        compute_stats=tfds.download.ComputeStatsMode.SKIP,
      )
    )
  return builder
