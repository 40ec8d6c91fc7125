"""The three tasks: their losses, metrics (compared with another library) and checks of targets."""

from __future__ import annotations

import pytest
import torch
from sklearn import metrics as reference

from overnight.models.mlp import MLP
from overnight.models.tasks import make_task


def random_batch(outputs: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, outputs, generator=generator)
    targets = (logits.argmax(1) + torch.randint(0, 2, (200,), generator=generator)) % outputs
    return logits, targets


def test_binary_is_one_logit_with_binary_cross_entropy_accuracy_auroc_and_f1() -> None:
    task, z, y = make_task("binary"), random_batch(1)[0].squeeze(1), random_batch(2)[1]
    p = task.predict(z)
    assert torch.allclose(p, 1 / (1 + (-z).exp()))
    by_formula = -(y * p.log() + (1 - y) * (1 - p).log())
    assert task.loss(z, y).item() == pytest.approx(by_formula.mean().item(), rel=1e-5)
    assert task.loss(z, y, reduction="sum").item() == pytest.approx(by_formula.sum().item(), rel=1e-5)
    found = {name: value.item() for name, value in task.metrics()(p, y).items()}
    assert found == pytest.approx(
        {
            "accuracy": reference.accuracy_score(y, p > 0.5),
            "auroc": reference.roc_auc_score(y, p),
            "f1": reference.f1_score(y, p > 0.5),
        }
    )


def test_multiclass_is_one_logit_a_class_with_cross_entropy_accuracy_f1_and_a_confusion_matrix() -> None:
    task, (z, y) = make_task("multiclass", 4), random_batch(4)
    assert task.outputs == 4
    p = task.predict(z)
    assert torch.allclose(p, z.exp() / z.exp().sum(1, keepdim=True))
    assert task.loss(z, y).item() == pytest.approx(-p[range(200), y].log().mean().item(), rel=1e-5)
    found = {name: value.item() for name, value in task.metrics()(task.decide(z), y).items()}
    chosen = p.argmax(1)
    assert found == pytest.approx(
        {"accuracy": reference.accuracy_score(y, chosen), "f1": reference.f1_score(y, chosen, average="macro")}
    )
    confusion = task.confusion()
    assert confusion is not None
    assert confusion(task.decide(z), y).tolist() == reference.confusion_matrix(y, chosen).tolist()


def test_regression_is_one_output_with_mse_mae_rmse_and_r2_and_no_confusion() -> None:
    task, z = make_task("regression"), random_batch(1)[0].squeeze(1)
    y = z * 2 + 1
    assert task.outputs == 1
    assert torch.equal(task.predict(z), z)
    assert task.loss(z, y).item() == pytest.approx(reference.mean_squared_error(y, z))
    found = {name: value.item() for name, value in task.metrics()(z, y).items()}
    assert found == pytest.approx(
        {
            "mae": reference.mean_absolute_error(y, z),
            "rmse": reference.root_mean_squared_error(y, z),
            "r2": reference.r2_score(y, z),
        },
        rel=1e-4,
    )
    assert task.confusion() is None


@pytest.mark.parametrize(
    ("name", "classes", "words"),
    [
        ("ranking", 3, r"data\.task: must be one of binary, multiclass, regression, got 'ranking'"),
        ("multiclass", None, r"model\.classes: multiclass needs at least 2"),
        ("multiclass", 1, r"model\.classes: multiclass needs at least 2, .*got 1"),
    ],
)
def test_an_unknown_task_is_refused(name: str, classes: int | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_task(name, classes)


@pytest.mark.parametrize(
    ("name", "targets", "words"),
    [
        ("multiclass", torch.tensor([0, 4, 5]), r"model\.classes: a label must be from 0 to 3.* got 4"),
        ("multiclass", torch.tensor([0, -1]), r"model\.classes: a label must be from 0 to 3.* got -1"),
        ("multiclass", torch.tensor([0.5]), "multiclass takes whole numbers"),
        ("binary", torch.tensor([0, 1, 2]), r"data\.task: binary takes the targets 0 and 1, got 2"),
        ("regression", torch.tensor([float("nan")]), "targets must be finite"),
        ("regression", torch.zeros(3, 1), r"targets must be one a row, \(B,\), got a batch of shape \(3, 1\)"),
    ],
)
def test_targets_that_do_not_fit_the_task_are_refused(name: str, targets: torch.Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_task(name, 4).check(targets)


@torch.inference_mode()
def test_an_evaluation_in_several_batches_covers_all_rows_and_starts_again_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model, inputs, targets = MLP((4,), classes=3, hidden_sizes=[8]), torch.randn(100, 4), torch.randint(0, 3, (100,))
    logged: dict[str, float] = {}
    monkeypatch.setattr(model, "log", lambda name, value: logged.update({name: float(value)}))
    monkeypatch.setattr(model, "log_dict", lambda found: logged.update({n: float(v) for n, v in found.items()}))
    for _ in range(2):
        model.on_validation_epoch_start()
        for batch in zip(inputs.split(30), targets.split(30), strict=True):
            model.validation_step(batch, 0)
        model.on_validation_epoch_end()
    outputs = model(inputs)
    chosen = outputs.argmax(1)
    assert logged == pytest.approx(
        {
            "val/loss": torch.nn.functional.cross_entropy(outputs, targets).item(),
            "val/accuracy": reference.accuracy_score(targets, chosen),
            "val/f1": reference.f1_score(targets, chosen, average="macro"),
        }
    )
    assert model.confusion_counts is not None
    assert model.confusion_counts.tolist() == reference.confusion_matrix(targets, chosen).tolist()
