"""The configuration: Hydra composition, settings with rules, paths, credentials, the import allowlist."""
