"""Purchase: whether an article is bought, by its price and usefulness. The data follows a rule and a fixed seed."""

from __future__ import annotations

import numpy as np
import torch

from overnight.data.split import SplitData
from overnight.data.split_60_20_20 import split_60_20_20
from overnight.data.tensors import Part

_ROWS = 4000


class Purchase(SplitData):
    """4,000 articles with a price from 0 to 100 and a usefulness from 0 to 10, both uniform, each bought or not.

    An article is bought if it is one of

    - cheap: price below 25, and usefulness above 1;
    - durable: price above 65, and usefulness above 6;
    - a bargain: usefulness above price / 10 + 3.5.

    No line separates the two classes, so that a linear model gets about 78% right. A network with a hidden layer can
    get all of them right. The split is 60% training, 20% validation and 20% test, with the same share bought in each.
    """

    task = "binary"
    input_shape = (2,)
    classes = 2
    columns = ("price", "usefulness")

    def split(self, seed: int) -> dict[str, Part]:
        articles = np.random.default_rng(0).random((_ROWS, 2)) * [100, 10]
        price, usefulness = articles.T
        cheap = (price < 25) & (usefulness > 1)
        durable = (price > 65) & (usefulness > 6)
        bargain = usefulness > price / 10 + 3.5
        bought = torch.from_numpy(cheap | durable | bargain).long()
        return split_60_20_20(torch.from_numpy(articles).float(), bought, seed, stratify=True)
