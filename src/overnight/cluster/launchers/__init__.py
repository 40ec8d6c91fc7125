"""Start and watch the workers of one launch: on this machine, on a Ray cluster, or as Slurm jobs."""
