"""Names from a user's code become names that MLflow takes, each its own, and can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import _validate_length_limit, _validate_metric_name, _validate_param_name

from overnight.tracking.names import from_mlflow, is_cut, log10_name, metric_name, notes_on_metrics, param_name

HOSTILE = (
    "val/AP@50", "loss (s) %", "train//loss", "/loss", "loss/", "/", "//", "", " ", ".", "..", "../x", "..x", "a/./b",
    "a/../b", "a\n", "\0", "\ud800", "Größe/мера", "x" * 251, "x" * 260, "(" * 260, "val/Loss", "val/loss", "objective",
    "objective:user:", "best/objective", "confirmed/mean", "log10_lr", "AP:at:50", ":at@", ":user:", "val/AP:at:50",
)  # fmt: skip
# Text of any kind, and text made of what the mapping has a meaning for.
ANY_NAME = (
    st.text(max_size=30)
    | st.text(alphabet="a/.:@ ", max_size=12)
    | st.sampled_from(HOSTILE)
    | st.text(max_size=20).map(lambda t: t * 30)
)
WORDS = st.lists(st.sampled_from([":", "at", "user", "u40", "/", ".", "@", "cut-", "0" * 20])).map("".join)
NAMES = ANY_NAME | WORDS


def mlflow_takes(name: str) -> bool:
    try:
        _validate_metric_name(name)
        _validate_param_name(name)
        _validate_length_limit("name", 250, name)
    except MlflowException:
        return False
    return True


@given(NAMES)
def test_mlflow_takes_every_mapped_name(name: str) -> None:
    for mapped in (metric_name(name), param_name(name), log10_name(name)):
        assert mlflow_takes(mapped), (name, mapped)


@given(st.sets(NAMES, max_size=20))
def test_no_two_names_share_one(names: set[str]) -> None:
    assert len({metric_name(n) for n in names}) == len(names)
    ours = {log10_name(n) for n in names}
    assert len({param_name(n) for n in names} | ours) == 2 * len(names), "a logarithm is none of the parameters"


@given(NAMES)
@example("x" * 260)
def test_every_name_can_be_read_back(name: str) -> None:
    for mapped in (metric_name(name), param_name(name)):
        assert from_mlflow(mapped, ["another", name]) == name
        if not is_cut(mapped):
            assert from_mlflow(mapped) == name


@given(st.from_regex(r"[\w.\- :]{1,40}(/[\w.\- :]{1,40}){0,4}", fullmatch=True).filter(mlflow_takes))
def test_a_name_that_mlflow_takes_stays_as_it_is(name: str) -> None:
    assert metric_name(name) == name
    assert param_name(name) == name


def test_names_stay_readable() -> None:
    assert metric_name("val/AP@50") == "val/AP:at:50"
    assert metric_name("loss (s) %") == "loss :lpar:s:rpar: :percent:"
    assert metric_name("train//loss") == "train/:slash:loss"
    assert metric_name("objective") == "objective:user:", "the objective of the trial has that name"
    assert param_name("log10_lr") == "log10_lr:user:", "the logarithm of lr has that name"
    assert metric_name("log10_lr") == "log10_lr"


def test_a_name_that_was_cut_and_is_not_known_cannot_be_read_back() -> None:
    with pytest.raises(LookupError, match="not known"):
        from_mlflow(metric_name("x" * 260), ["x" * 261])


def test_a_user_is_told_of_each_name_that_mlflow_does_not_take_and_why() -> None:
    assert notes_on_metrics(["val/loss", "val/AP@50", "objective", "AP:at:5"]) == [
        "MLflow shows the metric 'val/AP@50' as 'val/AP:at:50': it takes letters, digits, _ - . / : and blanks, in the "
        "form of a path",
        "MLflow shows the metric 'objective' as 'objective:user:': overnight writes a value of its own under that name",
        "MLflow shows the metric 'AP:at:5' as 'AP:colon:at:colon:5': a word between colons stands for a character that "
        "MLflow does not take",
    ]
    (note,) = notes_on_metrics(["x" * 260])
    assert note.endswith("it takes at most 250 characters")


def test_a_store_keeps_hostile_names_apart(home: Path) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{home}/mlflow.db")
    run_id = client.create_run("0").info.run_id
    values = {name: float(i) for i, name in enumerate(HOSTILE)}
    client.log_batch(
        run_id,
        [Metric(metric_name(name), value, 0, 0) for name, value in values.items()],
        [Param(param_name(name), str(value)) for name, value in values.items()],
    )
    data = client.get_run(run_id).data
    assert {from_mlflow(name, HOSTILE): value for name, value in data.metrics.items()} == values
    assert {from_mlflow(name, HOSTILE): float(text) for name, text in data.params.items()} == values
