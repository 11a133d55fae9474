"""A sequential model of RecBole on sessions that were written for it: no package of ours is imported here.

Reads a task (JSON) from standard input, of the form that :mod:`bench.libraries.recbole` writes, and prints one line of
JSON. The training step is RecBole's own, for a number of epochs or of steps alone. The targets of the test file are
ranked as RecBole scores them, among all items, ties against the model.
"""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.dataloader import TrainDataLoader
from recbole.utils import get_model, get_trainer, init_seed

RANKED_AT_ONCE = 512
LISTS = ("item_id_list", "Mask_item_id_list")
"""What of a batch is as long as the longest row of all."""


def main() -> None:
    task = json.loads(sys.stdin.read())
    sys.argv = sys.argv[:1]  # RecBole takes its own settings from it
    torch.set_num_threads(1)
    config = Config(model=task["model"], dataset=task["dataset"], config_dict=task["config"])
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train, test = dataset.build()
    batches: Any = TrainDataLoader(config, train, None, shuffle=True)  # before the model: tells BERT4Rec how it masks
    model = get_model(config["model"])(config, train)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    if task["alike"]:
        batches = AlikeBatches(batches, config["train_batch_size"])
    told: dict[str, Any] = {"items": int(dataset.item_num) - 1, "steps": len(batches)}  # one is for padding
    if task["steps"]:
        trainer._train_epoch(islice(batches, 3), 0)
        began = time.process_time()
        trainer._train_epoch(islice(batches, task["steps"]), 1)
        told["cpu_seconds_per_step"] = (time.process_time() - began) / task["steps"]
    else:
        losses = [trainer._train_epoch(batches, epoch) / len(batches) for epoch in range(config["epochs"])]
        np.save(Path(task["ranks"]), ranks(model, test, config["ITEM_ID_FIELD"]))
        told["losses"] = losses
    print(json.dumps(told))


@dataclass
class AlikeBatches:
    """RecBole's batches, but of rows of about the same length, without the padding that none of them needs."""

    loader: Any
    size: int

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        length = self.loader._dataset.inter_feat["item_length"]
        order = torch.randperm(len(length))
        order = order[length[order].argsort(stable=True)]
        for number in torch.randperm(len(self)).tolist():
            some = order[number * self.size : (number + 1) * self.size]
            batch = self.loader.collate_fn(some)
            for name in LISTS:
                if name in batch.interaction:
                    batch.interaction[name] = batch.interaction[name][:, : length[some[-1]]]
            yield batch


@torch.no_grad()
def ranks(model: Any, test: Any, target_field: str) -> Any:
    """The place of each row's target among all items but the one that stands for padding, from 1: int64[rows]."""
    model.eval()
    found = []
    for start in range(0, len(test), RANKED_AT_ONCE):
        some = test.inter_feat[start : start + RANKED_AT_ONCE]
        scores = model.full_sort_predict(some).view(len(some), -1)[:, 1:]  # [n, I]
        if not torch.isfinite(scores).all():
            sys.exit("a score is not finite")
        target = scores.gather(1, some[target_field][:, None] - 1)  # [n, 1]
        found.append((scores >= target).sum(1).numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    main()
