"""Purchase: whether somebody buys, by price and usefulness; made up by a rule, with seed."""

from __future__ import annotations

import numpy as np
import torch

from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import by_fifths
from overnight.data.tensors import Part

_ROWS = 4000


class Purchase(SplitData):
    """4,000 things with a price of 0 to 100 and a usefulness of 0 to 10, both uniform, each bought or not.

    A thing is bought if it is one of

    - cheap: price below 25, and usefulness above 1;
    - durable: price above 65, and usefulness above 6;
    - a bargain: usefulness above price / 10 + 3.5.

    No line parts the two: the dear and useful and the cheap and useless are both bought, what lies between is not, so a
    linear model gets about 78% right. A hidden layer that finds the three by itself can get them all. Three fifths
    train, a fifth validation, a fifth test, with as large a share bought in each.
    """

    task = "binary"
    input_shape = (2,)
    classes = 2
    columns = ("price", "usefulness")

    def split(self, seed: int) -> dict[str, Part]:
        things = np.random.default_rng(0).random((_ROWS, 2)) * [100, 10]
        price, usefulness = things.T
        cheap = (price < 25) & (usefulness > 1)
        durable = (price > 65) & (usefulness > 6)
        bargain = usefulness > price / 10 + 3.5
        bought = torch.from_numpy(cheap | durable | bargain).long()
        return by_fifths(torch.from_numpy(things).float(), bought, seed, stratify=True)
