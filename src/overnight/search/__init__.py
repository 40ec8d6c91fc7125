"""What to try next and when to stop: search space, plan, samplers, pruners and limits."""
