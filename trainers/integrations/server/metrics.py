"""What the server counts, in the text format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


class Metrics:
    """Counters of one server."""

    def __init__(self):
        self.registry = CollectorRegistry()
        options = {"namespace": "spa3r", "registry": self.registry}
        self.requests = Counter("requests", "Requests to the API, by HTTP status.", ["status"], **options)
        self.seconds = Histogram("request_seconds", "Time of a request to its end.", buckets=SECONDS, **options)
        self.active = Gauge("active_requests", "Requests that have not ended.", **options)
        self.waiting = Gauge("waiting_questions", "Questions that wait for their scene or for room.", **options)
        self.running = Gauge("running_questions", "Questions that are being answered.", **options)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of questions and their scenes.", **options)
        self.answer_tokens = Counter("answer_tokens", "Tokens of answers.", **options)
        self.encoded = Counter("scenes_encoded", "Scenes that were encoded.", **options)
        self.hits = Counter("scene_hits", "Questions whose scene was in the cache.", **options)
        self.evicted = Counter("scenes_evicted", "Scenes that left the cache.", **options)
        self.scenes = Gauge("cached_scenes", "Scenes in the cache.", **options)
        self.scene_bytes = Gauge("cached_scene_bytes", "Memory of the scenes in the cache.", **options)

    def as_text(self) -> bytes:
        """All values, as Prometheus reads them."""
        return generate_latest(self.registry)
