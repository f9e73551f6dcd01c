"""Tests of runs of several processes that meet on the loopback interface."""
