"""Hydra composition, validation, paths, credentials and the import allowlist."""
