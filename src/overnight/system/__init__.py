"""The operating system: forkserver, signals, killing processes, devices, keeping the machine awake."""
