"""Metrics on the test set have names of their own."""

from __future__ import annotations

from overnight.trial.evaluate import name_test_metrics


def test_every_metric_is_under_test() -> None:
    assert name_test_metrics({"loss": 1.0, "test_acc": 2.0, "test/f1": 3.0}) == {
        "test/f1": 3.0,
        "test/loss": 1.0,
        "test/acc": 2.0,
    }


def test_names_that_become_equal_are_told_apart() -> None:
    assert name_test_metrics({"test_acc": 1.0, "test/acc": 2.0, "acc": 3.0}) == {
        "test/acc": 2.0,
        "test/test/acc": 1.0,
        "test/test/test/acc": 3.0,
    }
