"""Where supervisors run: on this machine, on the nodes of a Ray cluster, as Slurm's jobs. Nothing is scheduled here."""
