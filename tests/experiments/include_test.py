"""Includes are found where they should be and lead nowhere else."""

import pathlib

from absl.testing import absltest

from tests.experiments import toy


class IncludeTest(toy.ToyTestCase):
  def test_from_the_folder_of_the_file_and_from_gin_configs(self):
    self.write("gin_configs/models/a.gin", toy.HEAD + "top.Run.steps = 1\n")
    self.write("gin_configs/models/b.gin", "include 'a.gin'\n")
    self.write(
      "run.gin",
      f"{toy.GOOD}include 'gin_configs/models/b.gin'\ninclude 'models/a.gin'\n",
    )
    self.assertIn("steps = 1", self.check().text([toy.RUN]))

  def test_circle(self):
    self.write("a.gin", "include 'b.gin'\n")
    self.write("b.gin", "\ninclude 'run.gin'\n")
    self.write("run.gin", f"{toy.GOOD}include 'a.gin'\n")
    self.assertEqual(
      self.mistakes(),
      [
        "b.gin:2: includes go in a circle (run.gin > a.gin > b.gin > run.gin);"
        " remove one"
      ],
    )

  def test_files_that_multiply(self):
    for number in range(12):
      name = f"include 'f{number + 1}.gin'\n"
      self.write(f"f{number}.gin", name * 2)
    self.write("f12.gin", "")
    self.write("run.gin", f"{toy.GOOD}include 'f0.gin'\n")
    [line] = self.mistakes()
    self.assertRegex(line, "over 200 files .* in all; include fewer$")

  def test_out_of_the_folders(self):
    outside = self.create_tempdir().full_path
    secret = pathlib.Path(outside) / "secret.gin"
    secret.write_text("PASSWORD = 'xyzzy'\n")
    (self.folder / "link.gin").symlink_to(secret)
    for name in (
      str(secret),
      "link.gin",
      f"../{pathlib.Path(outside).name}/secret.gin",
    ):
      self.write("run.gin", f"{toy.GOOD}include '{name}'\n")
      [line] = self.mistakes()
      self.assertIn("leads out of the including file's folder", line)
      self.assertNotIn("xyzzy", line)

  def test_of_something_else_than_gin(self):
    self.write("passwords.txt", "xyzzy\n")
    self.write("run.gin", f"{toy.GOOD}include 'passwords.txt'\n")
    self.assertEqual(
      self.mistakes(),
      [
        "run.gin:8: include 'passwords.txt': expected a name ending in .gin;"
        " rename the file"
      ],
    )


if __name__ == "__main__":
  absltest.main()
