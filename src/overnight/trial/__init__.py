"""What runs inside a trial process: fit, checkpoint, evaluate, predict, export."""
