"""What people read in a terminal: ids that cannot take it over, times, durations."""

from datetime import UTC, datetime

from rich.text import Text


def shown(text: str, style: str = "") -> Text:
    """An id as it is, without markup; what a terminal might obey (escapes, line breaks) becomes a question mark."""
    return Text("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text), style)


def escaped(line: bytes) -> str:
    """A line of JSON as it is, but with escapes for what a terminal might obey, which changes no value."""
    text = line.decode()
    return text if text.isprintable() else "".join(one if one.isprintable() else _escape(one) for one in text)


def _escape(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def utc(ms: int) -> str:
    """Milliseconds since the epoch as a date and time, to the second."""
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{ms} ms"  # beyond the calendar


def duration(seconds: float) -> str:
    """Seconds in the largest unit of which there are at least two."""
    for name, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {name}"
    return f"{seconds:.0f} s"
