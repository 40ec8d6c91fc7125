"""Pictures of trained networks and of studies."""
