"""One process of a distributed run: `python -m tests.train.worker FOLDER JSON`, under a launcher."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path

from safetensors.torch import save_file

from peftcli.errors import PeftcliError
from peftcli.train.loop import train
from peftcli.train.state import find_checkpoint
from tests.train.tiny import Net, NextToken, Stream, adalora, job, rows, trained


class StopsOneProcess(NextToken):
    """Sends SIGTERM to the second process alone, in its third micro-batch."""

    def loss(self, model, batch, *, label_smoothing=0.0):
        if len(self.seen) == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(model, batch, label_smoothing=label_smoothing)


def main() -> int:
    # A process that waits for another one forever says where, and ends.
    faulthandler.dump_traceback_later(90, exit=True)
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    dropout = options.pop("dropout", 0.0)
    model = adalora(tinit=1, tfinal=1) if options.pop("adalora", False) else Net(dropout=dropout)
    count = options.pop("rows", 20)
    data = Stream(rows(count)) if options.pop("stream", False) else rows(count)
    task = StopsOneProcess() if options.pop("stop", False) else NextToken()
    start = find_checkpoint(folder) if options.pop("resume", False) else None
    try:
        outcome = train(job(folder, model=model, train_rows=data, task=task, resume_from=start, **options))
    except PeftcliError as error:
        (folder / f"error-{os.environ['RANK']}").write_text(f"{error.exit_status} {error}")
        return 0
    save_file(trained(model), folder / f"end-{os.environ['RANK']}.safetensors")
    (folder / f"outcome-{os.environ['RANK']}.json").write_text(
        json.dumps([outcome.last_eval, outcome.tokens])
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
