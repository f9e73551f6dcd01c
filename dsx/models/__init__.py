"""Linen modules that own parameters and call `dsx.ops`."""
