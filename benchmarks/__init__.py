"""Benchmarks of overnight against other ways to run a study: `make bench` and `make bench-quick`; see NOTES.md."""
