"""Two adversarial networks with manual optimisation, two optimizers and a schedule stepped by hand."""

import pytorch_lightning as pl
import torch
from torch import nn


class Adversaries(pl.LightningModule):
    """A generator of digits and a critic. The metric is the critic's accuracy."""

    def __init__(self, latent=8, width=16, lr=2e-3, betas=(0.5, 0.999)):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.drawer = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 64), nn.Sigmoid())
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))

    def forward(self, z):
        return self.drawer(z).reshape(-1, 1, 8, 8)

    def drawn(self, n):
        return self(torch.randn(n, self.hparams.latent, device=self.device))

    def training_step(self, batch, batch_idx):
        real, _ = batch
        of_drawer, of_critic = self.optimizers()
        bce = nn.functional.binary_cross_entropy_with_logits
        n = len(real)

        self.toggle_optimizer(of_drawer)
        loss = bce(self.critic(self.drawn(n)), torch.ones(n, 1))
        of_drawer.zero_grad()
        self.manual_backward(loss)
        of_drawer.step()
        self.untoggle_optimizer(of_drawer)
        self.log("drawer/loss", loss, on_epoch=True, on_step=False)

        self.toggle_optimizer(of_critic)
        loss = bce(self.critic(real), torch.ones(n, 1)) + bce(self.critic(self.drawn(n).detach()), torch.zeros(n, 1))
        of_critic.zero_grad()
        self.manual_backward(loss)
        of_critic.step()
        self.untoggle_optimizer(of_critic)
        self.log("critic/loss", loss, on_epoch=True, on_step=False)

    def on_train_epoch_end(self):
        for schedule in self.lr_schedulers():
            schedule.step()

    def validation_step(self, batch, batch_idx):
        real, _ = batch
        right = (self.critic(real) > 0).float().mean() + (self.critic(self.drawn(len(real))) <= 0).float().mean()
        self.log("val/accuracy", right / 2)

    def configure_optimizers(self):
        options = {"lr": self.hparams.lr, "betas": self.hparams.betas}
        optimizers = [torch.optim.Adam(part.parameters(), **options) for part in (self.drawer, self.critic)]
        return optimizers, [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in optimizers]
