"""One frozen settings object, read from the environment at start-up and passed down.

Nothing else in the service reads environment variables (`tests/service/test_environment.py` has the exceptions).
"""

from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_CENTURY_DAYS = 36_500.0  # longer ones would lead out of the calendar
_PATH_PREFIX = r"^$|^(/[A-Za-z0-9._~-]+)+$"
_CENTURY_SECONDS = _CENTURY_DAYS * 86_400


class Settings(BaseSettings):
    """Settings of the service and the worker; each field is the variable `EXPUNGE_<NAME>`.

    One that is set to nothing has its default, as a container's environment means it: an empty home would be the
    working directory, an empty host every address of the machine.
    """

    model_config = SettingsConfigDict(env_prefix="EXPUNGE_", env_ignore_empty=True, frozen=True, extra="forbid")

    home: Path = Field(Path("var/expunge"), description="Folder of everything the service owns: data, weights, banks.")
    local: str = Field(
        "", description="Folder of this machine alone, if several machines share the home; empty: the home."
    )
    storage_url: str = Field(
        "",
        description="fsspec URL of a store that machines share for weights and banks, such as s3://bucket/folder; "
        "empty: they share the home.",
    )
    database_url: str = Field("", description="SQLAlchemy URL of the request database; empty: SQLite in the home.")
    workflow_database_url: str = Field(
        "",
        description="URL of the durable-execution store; empty: beside the requests (PostgreSQL: its schema `dbos`).",
    )

    host: str = Field(
        "127.0.0.1",
        description="Address, or a name of one, that the prediction and request API listens on. 0.0.0.0 means all "
        "IPv4 addresses of the machine, :: all addresses, IPv4 and IPv6.",
    )
    port: int = Field(3000, ge=0, le=65535, description="Port of the prediction and request API.")
    api_workers: int = Field(2, ge=1, le=256, description="Serving processes; as many as cores is best.")
    console_host: str = Field(
        "127.0.0.1",
        description="Address of the operators' listener (console, worker metrics), as of EXPUNGE_HOST.",
    )
    console_port: int = Field(3001, ge=0, le=65535, description="Port of the operators' listener.")

    path_prefix: str = Field(
        "",
        pattern=_PATH_PREFIX,
        description="Path under which a proxy offers the prediction and request API, such as /faces; empty: none.",
    )
    console_path_prefix: str = Field(
        "", pattern=_PATH_PREFIX, description="Path under which a proxy offers the operators' listener; empty: none."
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses and networks, separated by commas, of proxies whose X-Forwarded-Proto and "
        "X-Forwarded-For are believed; of others they are ignored.",
    )

    policy: str = Field(
        "standard",
        description="Audit policy: standard, strict, competition, spare, catch_up, or the path of a policy JSON file.",
    )
    recipe: str = Field(
        "att_small",
        description="Training recipe: att_small, att_resnet18, synthetic_small, synthetic_resnet18, "
        "casia_surf_resnet18, or the path of a recipe JSON file.",
    )
    tuned: Path | None = Field(
        None, description="File of tuned method settings (`expunge tune`); none: only those that come with Expunge."
    )
    device: str = Field("auto", description="auto (CUDA if there is one, else CPU), cpu, cuda or cuda:N.")
    backend: Literal["torch", "openvino"] = Field(
        "torch", description="Inference engine; openvino needs the extra `openvino` and serves on the CPU."
    )
    jobs: int = Field(
        0,
        ge=0,
        description="Training processes in parallel; 0: as many as cores, affinity, the container's quota and 1 GiB of "
        "memory for each allow.",
    )
    training_priority: Literal["auto", "normal"] = Field(
        "auto",
        description="Processor time of trainings. auto: as much as callers hardly feel while predictions are served "
        "from this home on this machine, else like any other program; normal: always like any other program. idle is a "
        "former name of auto.",
    )
    training_slowdown: float = Field(
        1.5,
        gt=1,
        le=100,
        description="How many times as long predictions may take beside trainings, at the 99th percentile; trainings "
        "pause for that.",
    )
    training_deadline_hours: float = Field(
        48.0,
        ge=0,
        le=8760,
        description="Hours before an open request's deadline from which on trainings no longer pause; 0: they always "
        "do.",
    )
    training_gpu_share: float = Field(
        0.7,
        gt=0,
        le=1,
        description="Share of a GPU's memory for all training processes together; each job gets an equal part.",
    )

    cluster: str = Field(
        "",
        pattern=r"^$|^ray:auto$|^ray://[^/\s]+$",
        description="Ray cluster that trains references: ray://HOST:10001 or ray:auto; empty: this machine's cores.",
    )
    rebuild_references: Literal["known", "all", "off"] = Field(
        "known",
        description="What the idle worker rebuilds: stale banks (known), also missing ones (all), or nothing (off).",
    )

    answers: Literal["full", "rounded", "label"] = Field(
        "full",
        description="What predictions say of probabilities: six decimals (full), two (rounded), or only the class "
        "(label). The less they say, the less two answers tell of who was erased between them.",
    )
    qualify_when_idle: bool = Field(
        False,
        description="Whether the idle worker qualifies methods of the policy's ladder that have no qualification or "
        "one that expires soon; once for each recipe, code and settings.",
    )

    hold_seconds: float = Field(
        0.0, ge=0, le=_CENTURY_SECONDS, description="Hold window in which a request may still be cancelled."
    )
    batch_window_seconds: float = Field(
        0.0,
        ge=0,
        le=_CENTURY_SECONDS,
        description="How long the first waiting request waits for others to share its run.",
    )
    batch_size: int = Field(1000, ge=1, description="Maximum number of requests in one run.")
    mass_deletion_share: float = Field(
        0.2, gt=0, le=1, description="A call that names more than this share of the subjects waits for a human."
    )
    mass_deletion_hours: float = Field(
        0.0,
        ge=0,
        le=_CENTURY_DAYS * 24,
        description="Hours of which all calls of one client count together for that share; 0: each call alone.",
    )
    most_open_requests: int = Field(
        10_000, ge=1, description="Open requests one client may have; `expunge keys create --most-open` sets another."
    )
    idempotency_days: float = Field(
        7.0,
        gt=0,
        le=_CENTURY_DAYS,
        description="How long the answer to a call with an Idempotency-Key is kept, in days.",
    )
    callback_allow: str = Field(
        "",
        description="Host names, addresses and networks, separated by commas, that callbacks may go to although they "
        "are not public.",
    )
    callback_ca_file: str = Field(
        "", description="PEM file of certificate authorities trusted with callbacks, besides the system's."
    )
    callback_days: float = Field(3.0, gt=0, le=30, description="How long a callback is tried again, in days.")
    report_photographs: bool = Field(
        False,
        description="Also write audit reports that show the images; they are kept in the run's folder until its purge.",
    )
    keep_evidence: bool = Field(
        True,
        description="Whether figures of single images are kept after the purge, in reports and certificates.",
    )
    report_days: float = Field(
        0.0,
        ge=0,
        le=_CENTURY_DAYS,
        description="Days for which the audit reports of an ended run are kept before they are destroyed; 0: for good.",
    )
    signing_key_days: float = Field(
        365.0,
        gt=0,
        le=_CENTURY_DAYS,
        description="Days after which the signing key is to be rotated; later it still signs, overdue.",
    )
    qualification_days: float = Field(
        180.0,
        gt=0,
        le=_CENTURY_DAYS,
        description="Days for which a qualification of a method (`expunge qualify`) holds.",
    )
    rerun_share: float = Field(
        0.1, ge=0, le=1, description="Share of runs made a second time before anything is deployed or destroyed."
    )
    max_image_bytes: int = Field(10_000_000, ge=1, description="Largest image file accepted, in bytes.")
    max_image_pixels: int = Field(25_000_000, ge=1, description="Largest image accepted, in pixels.")
    max_queue: int = Field(256, ge=1, description="Images waiting in one serving process before it answers 503.")
    max_client_queue: int = Field(
        0, ge=0, description="Of these, images of one client before it gets 429; 0: as many as all."
    )
    speedups: str = Field(
        "all",
        description="Speed-ups of the serving processes that rest on private parts of libraries: all, none, or their "
        "names with commas (packed_weights, early_refusal, fair_connections).",
    )
    temperature: float = Field(
        1.0, gt=0, le=100, description="Divisor of the logits before the softmax (temperature scaling); 1: as trained."
    )
    lease_seconds: float = Field(
        10.0, gt=0, le=_CENTURY_SECONDS, description="A serving process without a heartbeat this long fences itself."
    )
    swap_timeout_seconds: float = Field(
        120.0, gt=0, le=_CENTURY_SECONDS, description="Longest wait for all serving processes to swap."
    )
    poll_seconds: float = Field(
        0.1, gt=0, le=_CENTURY_SECONDS, description="Interval at which the queue and the active generation are polled."
    )
    shadow_seconds: float = Field(
        0.0,
        ge=0,
        le=_CENTURY_SECONDS,
        description="Longest time for which a certified candidate answers a share of the live predictions too, unseen "
        "by callers, before it goes into service; 0: not at all.",
    )
    shadow_share: float = Field(
        0.1, gt=0, le=1, description="Share of the batches that the candidate answers too in that time."
    )
    shadow_images: int = Field(
        1000, ge=1, description="Images after which that time ends early, over all serving processes."
    )
    fail_at: str = Field("", description="For tests: the worker kills itself once at this point of the pipeline.")
    log_format: Literal["console", "json"] = Field("console", description="Log lines for people or for machines.")
    log_level: Literal["info", "warning", "error"] = Field("info", description="The lowest level that is logged.")
    log_predictions_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of the answered predictions that get a log line; refusals and faults always do.",
    )
    metrics: bool = Field(True, description="Whether the serving processes keep metrics.")
    metrics_token: str = Field(
        "",
        pattern=r"^$|^[!-~]{16,255}$",
        repr=False,
        description="Token that a scrape of /metrics must bring, on both listeners: 16 or more visible ASCII "
        "characters; empty: none.",
    )
    otlp_endpoint: str = Field(
        "",
        description="OTLP/HTTP collector of traces, such as http://127.0.0.1:4318; empty: none. Needs the extra otel.",
    )

    @field_validator("training_priority", mode="before")
    @classmethod
    def _idle_became_auto(cls, value: object) -> object:
        return "auto" if value == "idle" else value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, value: str) -> str:
        for each in filter(None, map(str.strip, value.split(","))):
            ip_network(each)  # what it raises says which one is none
        return value

    @property
    def effective_database_url(self) -> str:
        """Database URL in force."""
        return self.database_url or f"sqlite:///{self.home.resolve() / 'expunge.db'}"

    @property
    def effective_workflow_database_url(self) -> str:
        """Durable-execution store's URL in force: a file of its own, or a schema of its own in the same PostgreSQL."""
        if self.workflow_database_url or not self.database_url or self.database_url.startswith("sqlite"):
            return self.workflow_database_url or f"sqlite:///{self.home.resolve() / 'workflows.db'}"
        return self.database_url

    @property
    def hold(self) -> timedelta:
        """Hold window as a time span."""
        return timedelta(seconds=self.hold_seconds)

    @property
    def data_folder(self) -> Path:
        """`metadata.csv` and the images."""
        return self.home / "data"

    @property
    def packed_folder(self) -> Path:
        """Images decoded once, as memory-mapped arrays."""
        return self.home / "packed"

    @property
    def models_folder(self) -> Path:
        """Content-addressed weights."""
        return self.home / "models"

    @property
    def banks_folder(self) -> Path:
        """Reference banks: margins, never weights."""
        return self.home / "banks"

    @property
    def evaluations_folder(self) -> Path:
        """Banks drawn to compare methods, one store a forget set."""
        return self.home / "evaluations"

    @property
    def keys_folder(self) -> Path:
        """Secret keys, readable by the owner only."""
        return self.home / "keys"

    @property
    def runs_folder(self) -> Path:
        """Working folder of each run: candidates, unlearned banks; emptied by the purge."""
        return self.home / "runs"

    @property
    def reports_folder(self) -> Path:
        """Audit reports, one folder a run."""
        return self.home / "reports"

    @property
    def commit_word_path(self) -> Path:
        """Eight bytes shared by the serving processes of this machine: the generation to answer with."""
        return self.local_folder / "commit.word"

    @property
    def in_flight_path(self) -> Path:
        """Shared by the serving processes of this machine: the oldest generation each has in flight."""
        return self.local_folder / "in-flight.words"

    @property
    def serving_mark_path(self) -> Path:
        """File that serving processes of this machine hold a lock on."""
        return self.local_folder / "serving.lock"

    @property
    def training_board_path(self) -> Path:
        """File of what callers feel beside trainings; see `store/felt.py`."""
        return self.local_folder / "felt.numbers"

    @property
    def accepting_mark_path(self) -> Path:
        """File that serving processes of this machine hold a lock on while they take connections."""
        return self.local_folder / "accepting.lock"

    @property
    def local_folder(self) -> Path:
        """What must not be shared with another machine: the commit word, BentoML's own files."""
        return Path(self.local) if self.local else self.home
