"""Fixtures, factories and helper processes that several tests use."""
