"""A module that logs by every way that modules have."""

import pytorch_lightning as pl
import torch
from torch import nn

from user_package.parts import Data


class Logs(pl.LightningModule):
    """Logs a scalar at each step, and a figure, an image, a text and a table after each epoch."""

    def __init__(self, width=4, times=1):
        super().__init__()
        self.save_hyperparameters()
        self.layer, self.times = nn.Linear(width, 2), times

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("loss", loss, on_step=True, on_epoch=True)
        for number in range(self.times):
            self.logger.experiment.add_scalar("curve/of steps", loss, self.global_step * self.times + number)
        return loss

    def validation_step(self, batch):
        self.log("val/loss", nn.functional.cross_entropy(self.layer(batch[0]), batch[1]))

    def on_train_start(self):
        self.logger.log_hyperparams({"of": {"user": 3}})

    def on_train_epoch_end(self):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure

        figure = Figure((2, 2))
        figure.subplots().plot([0, self.current_epoch])
        board, run_id = self.logger.experiment, self.logger.run_id
        board.add_figure("confusion", figure, self.current_epoch, close=False)
        board.log_figure(run_id, figure, "last.png")
        board.add_image("weights", torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(0)), self.current_epoch)
        board.add_text("says", f"epoch {self.current_epoch}", self.current_epoch)
        self.logger.log_table("rows", ["a", "b"], [[1, 2.0]], step=self.current_epoch)
        self.logger.log_metrics({"by epoch": float(self.current_epoch)}, step=self.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


__all__ = ["Data", "Logs"]
