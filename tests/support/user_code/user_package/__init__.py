"""A user's package: networks and data that import nothing of overnight."""
