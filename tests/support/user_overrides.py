"""Overrides that tune a user's network."""

from __future__ import annotations

BARE = (
    "~model.hidden_sizes",
    "~model.activation",
    "~model.dropout",
    "~model.batch_norm",
    "search=none",
    "trainer.max_epochs=4",
)


def user_network(name: str, *overrides: str) -> tuple[str, ...]:
    return (*BARE, f"model._target_=user_networks.{name}", *overrides)
