"""Predictions for the rows of a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from overnight.config.problems import ConfigError
from overnight.protocol import PredictSpec
from overnight.trial.fit import fit
from overnight.trial.predict import predict
from support.trial_links import ListLink, spec_for


def test_a_table_is_predicted_in_the_units_of_its_targets(tmp_path: Path) -> None:
    """Diabetes is trained on standardised targets and predicted in the original points."""
    assert fit(spec_for(tmp_path, "data=diabetes", "trainer.max_epochs=20"), ListLink()).outcome == "complete"
    rows, points = load_diabetes(return_X_y=True, scaled=False)
    table = tmp_path / "patients.csv"
    names = [
        "s6",
        "age",
        "sex",
        "bmi",
        "bp",
        "s1",
        "s2",
        "s3",
        "s4",
        "s5",
    ]  # in another order, and with one more column
    places = [9, *range(9)]
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["patient", *names])
        writer.writerows([f"p{i}", *row[places]] for i, row in enumerate(rows))
    rows_out = predict(PredictSpec(tmp_path / "weights.ckpt", table)).rows
    assert [r.source for r in rows_out[:2]] == ["1", "2"]
    assert all(r.probability is None for r in rows_out)
    answers = np.array([r.answer for r in rows_out])
    assert np.corrcoef(answers, points)[0, 1] > 0.6
    assert 130 < answers.mean() < 175, "the targets' mean is 152"
    in_order = tmp_path / "bare.csv"
    in_order.write_text("\n".join(",".join(map(str, row)) for row in rows))
    assert [r.answer for r in predict(PredictSpec(tmp_path / "weights.ckpt", in_order)).rows] == list(answers)


@pytest.fixture(scope="module")
def purchase(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("purchase")
    assert fit(spec_for(folder, "data=purchase", "trainer.max_epochs=2"), ListLink()).outcome == "complete"
    return folder / "weights.ckpt"


def test_a_binary_prediction_has_a_probability(purchase: Path, tmp_path: Path) -> None:
    (tmp_path / "things.csv").write_text("usefulness,price\n9.5,5\n0.2,60\n")
    first, second = predict(PredictSpec(purchase, tmp_path / "things.csv")).rows
    assert (first.answer, second.answer) == (1, 0)
    assert all(r.probability is not None and 0.5 <= r.probability <= 1 for r in (first, second))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("things.txt", "1,2\n", "must be a .csv file"),
        ("empty.csv", "", "must hold rows of price, usefulness"),
        ("heads.csv", "price,usefulness\n", "must hold rows of price, usefulness"),
        ("lacks.csv", "price,use\n1,2\n", "it lacks usefulness: name them so in its first line"),
        ("wide.csv", "1,2,3\n", "must have the columns price, usefulness, got 1, 2, 3"),
        ("text.csv", "price,usefulness\n1,2\nx,inf\n", "line 3, price: must be a finite number, got 'x'"),
        ("text.csv", "price,usefulness\n1,2\nx,inf\n", "line 3, usefulness: must be a finite number, got 'inf'"),
        ("short.csv", "price,usefulness\n1\n", "line 2, usefulness: must be a finite number, got ''"),
    ],
)
def test_a_wrong_table_is_refused_with_line_and_column(
    purchase: Path, tmp_path: Path, name: str, content: str, words: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as refused:
        predict(PredictSpec(purchase, tmp_path / name))
    assert any(words in problem for problem in refused.value.problems), refused.value.problems
