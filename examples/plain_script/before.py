"""A plain training script: the numbers that matter are in the code."""

import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

images, labels = load_digits(return_X_y=True)
rows = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
train_rows, val_rows = random_split(rows, [0.8, 0.2], torch.Generator().manual_seed(0))

net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
optimizer = torch.optim.Adam(net.parameters(), lr=0.001)

for epoch in range(10):
    for inputs, targets in DataLoader(train_rows, 32, shuffle=True):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(inputs), targets)
        loss.backward()
        optimizer.step()
    inputs, targets = val_rows[:]
    print(epoch, (net(inputs).argmax(1) == targets).float().mean().item())
