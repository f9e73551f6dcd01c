"""One absl binary per job."""
