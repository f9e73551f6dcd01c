"""Who of the processes of a run still lives, and the end of those left over."""

# The exit code of a process that ends because another one was lost: EX_TEMPFAIL
# of sysexits.h. Who starts the run may start it again.
LOST = 75
