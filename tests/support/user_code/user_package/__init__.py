"""A package as somebody else has it: networks and data that import nothing of overnight."""
