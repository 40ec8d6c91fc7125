"""The command line: one module for each group of commands, the live table and the printed results."""
