"""Workers on other machines: the worker itself, the launchers that start it, and the migration of shared stores."""
