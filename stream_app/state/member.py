"""Which member of the consumer group a data folder is.

A worker that starts again under its id takes its own partitions back at once. Without one it is a stranger, and Kafka
keeps its partitions for the dead worker until the session timeout has passed.
"""

import json
import re
import uuid
from pathlib import Path
from typing import Final

from schemas import durable

_FILE: Final = "member.json"
_ID: Final = re.compile("[0-9a-f]{32}")


def member_id(data_dir: Path) -> str:
    """The id of this folder, made when it is first used. Raises OSError.

    Two workers with one id would take each other's place in the group: a copy of a folder is another folder, and gets
    another id. A file that cannot be read is replaced; that costs the wait of a stranger, once.
    """
    file, folder = data_dir / _FILE, data_dir.stat().st_ino
    try:
        known = json.loads(file.read_bytes())
        if known["folder"] == folder and _ID.fullmatch(known["id"]):
            return str(known["id"])
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        pass
    made = uuid.uuid4().hex
    durable.replace(file, json.dumps({"id": made, "folder": folder}).encode())
    return made
