"""What to try next and when to stop: space, sampler, plan and limits. No files and no processes."""
