"""The supervisor loop and what it needs: trial processes, watchdog, preflight, background plots, notifications."""
