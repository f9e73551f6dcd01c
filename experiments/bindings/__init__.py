"""What gin files say, read and checked without running any of it."""
