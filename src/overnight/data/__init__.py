"""The data modules that come with overnight, one room each."""
