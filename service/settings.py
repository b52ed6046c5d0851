"""The settings of every process of the service, read from the environment once, where the process starts.

Each field is the variable `ALLO_<FIELD>`: `lease_seconds` is `ALLO_LEASE_SECONDS`. Nothing else reads the environment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from allo_engine.harness import HARNESS_TASKS
from allo_engine.teacher import TEACHER_KEY
from service import places
from service.brokers import checked
from service.storage.access import S3

Seconds = Annotated[float, Field(gt=0)]
Bytes = Annotated[int, Field(gt=0)]

PREFIX = "ALLO_"
OF_AWS = {
    "s3_endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
    "s3_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "s3_access_key": ("AWS_ACCESS_KEY_ID",),
    "s3_secret_key": ("AWS_SECRET_ACCESS_KEY",),
    "s3_session_token": ("AWS_SESSION_TOKEN",),
}
"""Where AWS' own tools look for the same, which is taken where ours is not set and the store is in S3."""

_KEYS = {"s3_access_key", "s3_secret_key", "s3_session_token"}

OF_OTHERS = {"ALLO_API_KEY", "ALLO_URL", HARNESS_TASKS, TEACHER_KEY}
"""What `allo submit` and its like read, on a machine that may run the service too, and what stages read."""


class Settings(BaseModel):
    """Where things are, how much is allowed, and how long anything may take. The defaults need no other service."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)  # some are secret

    data_dir: Path = Field(default=Path("allo-data"), description="Folder of the database, the artifacts and the key.")
    database_url: Annotated[str, AfterValidator(places.database)] = Field(
        default="", repr=False, description="SQLAlchemy URL; empty: SQLite in the data folder."
    )
    broker_url: Annotated[str, AfterValidator(checked)] = Field(
        default="redis://127.0.0.1:6379/0",
        repr=False,
        description="Any Redis-protocol server: redis://user:password@host:6379/0, with TLS rediss://…?ssl_ca_certs=FILE.",
    )
    store_url: Annotated[str, AfterValidator(places.store)] = Field(
        default="", description="file:///folder or s3://bucket/prefix; empty: the data folder."
    )
    store_cache_bytes: Bytes = Field(
        default=20 * 2**30,
        description="Of an s3:// store: what this machine keeps of it at hand. Best twice the largest model or more.",
    )
    store_seconds: Seconds = Field(default=30, description="Of an s3:// store: the longest that one request may take.")
    s3_endpoint: str = Field(
        default="",
        pattern="^(https?://.*)?$",
        description="A server that speaks S3; empty: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, or AWS itself.",
    )
    s3_region: str = Field(default="", description="Empty: AWS_REGION, AWS_DEFAULT_REGION, or us-east-1.")
    s3_access_key: str = Field(
        default="", description="Empty: AWS_ACCESS_KEY_ID, or the role that the machine itself has."
    )
    s3_secret_key: str = Field(default="", repr=False, description="Empty: AWS_SECRET_ACCESS_KEY.")
    s3_session_token: str = Field(default="", repr=False, description="Empty: AWS_SESSION_TOKEN.")
    queue: str = Field(
        default="stages", description="What the workers' queues are called: each listens to <queue>.<its name>."
    )

    hub_url: str = Field(
        default="",
        pattern="^(https?://.*)?$",
        description="Where `allo models add` may fetch models by their Hub ids: https://huggingface.co, or another "
        "that speaks its protocol. Empty: nowhere.",
    )
    models_dir: str = Field(
        default="",
        description="Folder whose folders admins may add as models on the dashboard; empty: none. `allo models add` "
        "takes any.",
    )

    max_file_bytes: Bytes = Field(default=512 * 2**20, description="Largest training file.")
    max_part_bytes: Bytes = Field(default=64 * 2**20, description="Largest part of an upload in parts.")
    max_request_bytes: Bytes = Field(default=2**20, description="Largest body of any other request.")
    max_line_bytes: Bytes = Field(default=4 * 2**20, description="Longest line of a training file.")
    max_uploads: int = Field(default=16, ge=1, description="Uploads that one API process receives at once; more wait.")
    max_owner_uploads: int = Field(
        default=8, ge=1, description="Uploads that one owner may send to one API process at once."
    )
    upload_seconds: Seconds = Field(default=86_400, description="For how long an upload in parts takes parts.")
    max_owner_bytes: int = Field(
        default=0,
        ge=0,
        description="What one owner's files, models, uploads and jobs' results may take of the disk; 0: no limit.",
    )
    sweep_seconds: Seconds = Field(default=300, description="Between two looks for content that nobody holds.")
    sweep_grace_seconds: float = Field(
        default=3600,
        ge=60,
        description="Content without a holder is erased after this long. More than a worker takes to store a result.",
    )
    keep_refused_seconds: Seconds = Field(
        default=86_400, description="For how long a file that cannot be trained on is kept, with its report."
    )
    keep_sources_seconds: Seconds = Field(
        default=604_800,
        description="For how long a failed or cancelled job keeps the content that it began with, to be retried.",
    )
    intermediate_jobs: int = Field(
        default=0,
        ge=0,
        description="What stages made on the way to a job's result stays for the latest so many ended jobs of an "
        "owner's; 0: for all. What is let go is computed again where another job wants it.",
    )
    intermediate_days: float = Field(default=0, ge=0, description="The same, for so many days; 0: for ever.")
    intermediate_bytes: int = Field(
        default=0,
        ge=0,
        description="The same, as far as it takes so many bytes, the latest first; 0: whatever it takes.",
    )
    scrub_days: float = Field(
        default=30,
        ge=0,
        description="Within so many days every stored content is read again, and held against its hash; 0: never.",
    )
    scrub_bytes_per_second: Bytes = Field(
        default=20 * 2**20,
        description="The reading of stored contents goes no faster than this, and rather takes longer.",
    )
    max_active_jobs: int = Field(
        default=100,
        ge=1,
        description="Jobs of one owner that have not ended. Of those that have, what they left counts, as bytes.",
    )
    requests_per_minute: int = Field(
        default=120_000, ge=0, description="Requests of one owner to one API process; 0: no limit."
    )
    max_owner_requests: int = Field(
        default=1000, ge=1, description="Requests of one owner that are open at one API process at once."
    )
    max_streams: int = Field(
        default=100, ge=1, description="Live streams that one owner has open at one API process at once."
    )
    max_owner_answers: int = Field(
        default=8, ge=1, description="Answers of models that one owner waits for at once, of one API process."
    )
    session_seconds: Seconds = Field(
        default=7 * 86_400, description="For how long a browser stays signed in to the dashboard."
    )
    audit_seconds: Seconds = Field(default=90 * 86_400, description="For how long it is kept who did what.")
    min_free_bytes: int = Field(default=2**30, ge=0, description="Free disk below which the service is not ready.")
    retry_window_seconds: Seconds = Field(
        default=600, description="For how long a client's marked retry means the request that was already done."
    )
    idempotency_seconds: Seconds = Field(
        default=86_400, description="For how long the same Idempotency-Key means the request that was already done."
    )

    max_connections: int = Field(
        default=2000, ge=1, description="Connections to one API process; whoever comes then is sent away with 503."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="A line an event, for people or programs.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(default="INFO", description="From which level on.")

    log_bytes: Bytes = Field(
        default=2**26,
        description="A log in DIR/logs that is larger is begun anew, and four earlier ones stay; all together take "
        "32 times as much at most.",
    )
    log_days: float = Field(
        default=30, ge=0, description="For how long logs stay that nobody writes to any more; 0: while there is room."
    )

    heartbeat_seconds: Seconds = Field(
        default=2, description="Between two signs of life of a running stage; a cancel comes back with the next one."
    )
    self_fence_seconds: Seconds = Field(
        default=14,
        description="A runner that reached no database for this long kills its own stage: at least three beats, and "
        "less than a lease.",
    )
    lease_seconds: Seconds = Field(
        default=20,
        description="A stage without a sign of life for this long is taken away; after half of it, another "
        "worker's scheduler leads.",
    )
    redispatch_seconds: Seconds = Field(
        default=8, description="A stage that was rung for and not claimed is rung again."
    )
    stall_seconds: float = Field(
        default=900,
        ge=0,
        description="A training that says nothing for this long, and for twenty times its own longest silence, is "
        "ended and tried again, unless it reads or writes large files meanwhile; before its first word it has four "
        "times as long. 0: never.",
    )
    dispatch_seconds: Seconds = Field(default=0.5, description="Between two looks for stages that are ready.")
    grace_seconds: Seconds = Field(
        default=10,
        description="Between TERM and KILL of a training process: time to write a checkpoint. Without one by then the "
        "stage goes on from the one before.",
    )
    keep_seconds: float = Field(
        default=60,
        ge=0,
        description="Between two copies of a running stage's checkpoint to the store, from where another host goes on; "
        "at least ten times as long as the last one took, so that they take a tenth of the time at most. 0: none.",
    )
    webhook_private: bool = Field(
        default=False, description="Whether webhooks may go to addresses of private networks, and without TLS."
    )
    teacher_hosts: str = Field(
        default="",
        description="Hosts, separated by commas, that jobs may ask for corrections or judgements: 'api.openai.com' or "
        "'127.0.0.1:8000' for that port alone. Empty: none. Their key is ALLO_TEACHER_API_KEY, at the workers.",
    )
    trackers: str = Field(
        default="",
        pattern=r"^((mlflow|wandb|trackio)(=[^,\s]+)?(,|$))*$",
        description="Trackers that jobs may name in `integrations`, each with =PLACE where its library does not look "
        "there by itself: 'mlflow=http://127.0.0.1:5000,wandb,trackio=org/space'. Keys are what the libraries read "
        "from the environment. Empty: none.",
    )
    slots: int = Field(
        default=0, ge=0, description="Stages that this worker runs at once; 0: one a device, without devices one."
    )
    devices: str = Field(
        default="",
        pattern=r"^[^,=]*(=\d+(\.\d+)?)?(,[^,=]*(=\d+(\.\d+)?)?)*$",
        description="Devices of this worker, as in CUDA_VISIBLE_DEVICES, each with =GiB where its driver does not say "
        "what it holds, or not all of it is ours: '0,1' or '0=24,1=24'. Empty: all there are.",
    )
    calibrate_seconds: float = Field(
        default=10,
        ge=0,
        description="A worker that has had no stage for this long measures how fast it is, once, for estimates; 0: "
        "never. A stage that comes meanwhile goes first. A worker with an engine of its own is not measured.",
    )
    serve_idle_seconds: float = Field(
        default=600,
        ge=0,
        description="A worker without a stage answers questions to models, and lets a model go that nobody has asked "
        "for this long; 0: it answers none. A stage that comes goes first.",
    )
    serve_backend: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="What decodes answers; auto: vLLM where it is installed, the device is a GPU and it can serve the "
        "model, else the engine itself.",
    )
    drain_seconds: float = Field(
        default=3, ge=0, description="For how long a model may go on answering once a stage wants its worker."
    )
    engine: str = Field(default="", description="Command line that runs a stage; empty: this Python's allo_engine.")

    @model_validator(mode="after")
    def _fenced(self) -> Settings:
        """Whoever has lost its lease must have ended its stage before another may begin it, and one beat that fails
        must not end it."""
        beat, fence, lease = self.heartbeat_seconds, self.self_fence_seconds, self.lease_seconds
        if 3 * beat > fence:
            raise ValueError(
                f"ALLO_SELF_FENCE_SECONDS ({fence:g}) must be at least three ALLO_HEARTBEAT_SECONDS ({beat:g})."
            )
        if fence >= lease:
            raise ValueError(f"ALLO_LEASE_SECONDS ({lease:g}) must be more than ALLO_SELF_FENCE_SECONDS ({fence:g}).")
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """The settings of this process. An unknown ALLO_ variable is an error: most likely it is misspelt."""
        ours = {key: value for key, value in environment.items() if key.startswith(PREFIX) and key not in OF_OTHERS}
        fields = {key.removeprefix(PREFIX).lower(): value for key, value in ours.items()}
        if fields.get("store_url", "").startswith("s3:"):
            fields = _of_aws(environment, fields) | {key: value for key, value in fields.items() if value}
        return cls.model_validate(fields)

    def to_environment(self) -> dict[str, str]:
        """What a child process must find in its environment to read these very settings."""
        return {PREFIX + key.upper(): str(value) for key, value in self.model_dump().items()}

    def open_data_dir(self) -> None:
        """Makes the data folder where it is absent, and closes it to every other user of the machine."""
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.data_dir.stat().st_mode & 0o077:
            with suppress(PermissionError):  # a folder that others own and let us use
                self.data_dir.chmod(0o700)

    @property
    def database(self) -> str:
        """The database's URL, with the default worked out."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'allo.db'}"

    @property
    def s3(self) -> S3:
        """How an s3:// store is reached, and where what is kept of it lies."""
        return S3(
            cache=self.data_dir.absolute() / "store-cache",
            cache_bytes=self.store_cache_bytes,
            endpoint=self.s3_endpoint,
            region=self.s3_region,
            access_key=self.s3_access_key,
            secret_key=self.s3_secret_key,
            session_token=self.s3_session_token,
            seconds=self.store_seconds,
        )

    @property
    def store(self) -> str:
        """The artifact store's URL, with the default worked out."""
        return self.store_url or (self.data_dir.absolute() / "store").as_uri()


def refusals(error: ValidationError) -> list[str]:
    """What is wrong with which variable, a line each; their values, of which some are secret, are not told."""
    from allo_engine.checks import did_you_mean  # here: it loads every stage's settings

    told = []
    for problem in error.errors():
        words = problem["msg"].removeprefix("Value error, ")
        variable = PREFIX + ".".join(map(str, problem["loc"])).upper() if problem["loc"] else ""
        if problem["type"] == "extra_forbidden":
            words = "there is no such setting." + did_you_mean(variable, _VARIABLES)
        told.append(f"{variable}: {words}" if variable else words)
    return told


_VARIABLES = [PREFIX + field.upper() for field in Settings.model_fields]


def _of_aws(environment: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """What the environment has for AWS' own tools, as our fields; keys belong together, and ours come first."""
    fields = [field for field in OF_AWS if not (ours.get("s3_access_key") and field in _KEYS)]
    found = {field: next(filter(None, map(environment.get, OF_AWS[field])), None) for field in fields}
    return {field: value for field, value in found.items() if value is not None}
