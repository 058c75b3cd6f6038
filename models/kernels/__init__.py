"""Fast paths for GPUs, each beside the plain path that defines it and never the default."""
