"""The network."""

import itertools

import torch


class SimpleDenseNet(torch.nn.Module):
    def __init__(self, input_size: int, lin1_size: int, lin2_size: int, lin3_size: int, output_size: int) -> None:
        super().__init__()
        sizes = [input_size, lin1_size, lin2_size, lin3_size]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (torch.nn.Linear(a, b), torch.nn.ReLU())]
        self.model = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(lin3_size, output_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)
