"""Schedulers: which trial trains next, and how far. Functions of the trials; no files, no processes."""
