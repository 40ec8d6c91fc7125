"""Runs workers on other machines, launches them, and migrates the databases that they share."""
