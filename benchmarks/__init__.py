"""How fast overnight is, measured against what people use: `make bench` and `make bench-quick`; see NOTES.md."""
