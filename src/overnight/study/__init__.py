"""The durable state of a study: opening it, asking for trials, recording them, and reading them back."""
