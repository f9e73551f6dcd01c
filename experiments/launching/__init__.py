"""Starting a run somewhere: here, on a cluster, on a pod."""
