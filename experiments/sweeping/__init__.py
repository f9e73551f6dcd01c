"""Many runs of one gin file that differ in a few bindings."""
