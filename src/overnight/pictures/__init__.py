"""Pictures of a trained network: its first weights, its curves, its answers and its worst mistakes."""
