"""A partition loses its end, as by a disk or an unclean leader election, and stays the same topic's."""

from pathlib import Path


def tear(data: Path, topic: str, partition: int, *, keep: float) -> None:
    """Leave so much of a partition's only segment, below the data of brokers that do not run: 0.5 is half of it.

    A broker that was killed, or finds no mark of a stop in good order, makes all that is derived from it anew.
    """
    for log in data.rglob(f"{topic}-{partition}"):
        [segment] = log.glob("*.log")
        with segment.open("r+b") as file:
            file.truncate(int(segment.stat().st_size * keep))
        for derived in [*log.glob("*.index"), *log.glob("*.timeindex"), *log.glob("*.snapshot")]:
            derived.unlink()
        (log.parent / ".kafka_cleanshutdown").unlink(missing_ok=True)
