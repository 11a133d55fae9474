"""A sequential model of RecBole on sessions that were written for it: no package of ours is imported here.

Reads a task (JSON) from standard input, of the form that :mod:`bench.libraries.recbole` writes, and prints one line of
JSON. It trains by RecBole's own loop, for a number of epochs or of steps alone, and ranks the targets of the test file
as RecBole scores them, all items, ties against the model.
"""

import json
import sys
import time
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


def main() -> None:
    task = json.loads(sys.stdin.read())
    sys.argv = sys.argv[:1]  # RecBole takes its own settings from it
    torch.set_num_threads(1)
    config = Config(model=task["model"], dataset="clicks", config_dict=task["config"])
    init_seed(config["seed"], True)
    dataset = create_dataset(config)
    train, test = dataset.build()
    batches = TrainDataLoader(config, train, None, shuffle=True)  # before the model: it tells BERT4Rec how it masks
    model = get_model(config["model"])(config, train)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    told: dict[str, Any] = {"items": int(dataset.item_num) - 1, "steps": len(batches)}  # one is for padding
    if task["steps"]:
        trainer._train_epoch(islice(batches, 3), 0)
        began = time.process_time()
        trainer._train_epoch(islice(batches, task["steps"]), 1)
        told["cpu_seconds_per_step"] = (time.process_time() - began) / task["steps"]
    else:
        began = time.process_time()
        trainer.fit(batches, saved=False, verbose=False)
        told["cpu_seconds"] = time.process_time() - began
        told["losses"] = [float(trainer.train_loss_dict[epoch]) / len(batches) for epoch in range(config["epochs"])]
        np.save(Path(task["ranks"]), ranks(model, test, config["ITEM_ID_FIELD"]))
    print(json.dumps(told))


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
