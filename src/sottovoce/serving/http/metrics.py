"""What a server counts, for Prometheus."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

_SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        here: Any = {"registry": self.registry, "namespace": "sottovoce"}
        self.requests = Counter("requests", "chat requests by the status of their answer", ["status"], **here)
        self.seconds = Histogram("request_seconds", "from arrival to the end of the answer", buckets=_SECONDS, **here)
        self.first = Histogram("first_token_seconds", "of streams, to the first words", buckets=_SECONDS, **here)
        self.batch = Histogram("batch_size", "requests answered together", buckets=(1, 2, 4, 8, 16, 32, 64), **here)
        self.admitted = Gauge("requests_present", "requests that wait or are in work", **here)
        self.heard = Counter("audio_seconds", "of the clips of all requests", **here)
        self.read = Counter("prompt_tokens", "that the LLM has read", **here)
        self.generated = Counter("generated_tokens", "that the LLM has written", **here)
        ProcessCollector(registry=self.registry)

    def page(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)
