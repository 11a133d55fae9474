"""The spans of a traced click in a worker: from when it was read until Kafka has confirmed its ranking."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from opentelemetry.trace import Span

from schemas.messages.source import Source
from stream_app.serve.delivery import Sending
from stream_app.tracing import Tracing, context_of, failed, is_sampled, trace_headers

if TYPE_CHECKING:
    from stream_app.serve.in_flight import Part
    from stream_app.serve.settling import Computed


@dataclass(frozen=True, slots=True)
class OpenSpans:
    """Of one click; they end when Kafka has confirmed its ranking, or that it was rejected."""

    sending: Sending
    spans: tuple[Span, ...]

    def end(self) -> None:
        """Kafka has confirmed it."""
        for span in self.spans:
            span.end(round(self.sending.finished_at * 1e9))


class ClickSpans:
    """Begins the spans of those clicks of a batch whose trace is sampled; the others cost a look at their header.

    A batch is computed together, so its spans called `compute` tell the same, each to a trace of its own.
    """

    def __init__(self, tracing: Tracing, *, group: str, rankings: str) -> None:
        self._tracing = tracing
        self._group, self._rankings = group, rankings

    def begin(self, computed: Sequence["Computed"], began_ns: int, steps: Mapping[str, float]) -> None:
        """A batch was computed since `began_ns`, the steps in so many seconds; from now on rankings name their span."""
        now_ns = time.time_ns()
        clicks = {id(chunk): len(chunk.records) for one in computed for chunk, _ in one.part.chunks}
        told = {
            "nextclick.batch.clicks": sum(clicks.values()),
            **{f"nextclick.step.{step}": seconds for step, seconds in steps.items()},
        }
        for one in computed:
            part = one.part
            for answer in one.result.ranked if part.traces else ():
                process = self._process(part, answer.offset)
                if process is None:
                    continue
                process.set_attribute("nextclick.model_version", one.serves.model.version)
                process.set_attribute("nextclick.reason", answer.reason.value)
                self._tracing.step("compute", process, began_ns, now_ns, told)
                send = self._tracing.send(self._rankings, process, now_ns)
                part.traces[answer.offset] = trace_headers(send)
                part.spans.append(OpenSpans(part.rankings[0], (send, process)))
            for rejected in one.rejected:
                process = self._process(part, rejected.source.offset)
                if process is not None:
                    failed(process, rejected.reason.value)
                    part.spans.append(OpenSpans(part.rankings[0], (process,)))

    def _process(self, part: "Part", offset: int) -> Span | None:
        """The span of a click, None where nobody wants one."""
        headers = part.traces.get(offset)
        if headers is None or not is_sampled(headers) or (parent := context_of(headers)) is None:
            return None
        chunk = next(chunk for chunk, _ in part.chunks if offset <= chunk.records[-1].offset)
        source = Source(chunk.tp.topic, chunk.tp.partition, offset)
        span = self._tracing.process(source, parent, group=self._group, began_ns=chunk.read_ns)
        return span if span.is_recording() else None
