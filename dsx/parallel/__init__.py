"""Mesh, sharding and the communication between devices."""
