"""The Lightning modules that come with overnight, one room each."""
