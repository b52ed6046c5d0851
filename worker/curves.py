"""What a trained stage told of its steps, as a file for TensorBoard among what it leaves."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from allo_engine.pipeline import TRAINED
from service.db import Database
from service.jobs import series
from service.jobs.running.attempts import Claim
from service.storage.store import Store

log = logging.getLogger(__name__)

OUTPUT = "tensorboard"


def store_curves(database: Database, store: Store, claim: Claim) -> Sequence[tuple[str, str, str, int]]:
    """The artifact, of all attempts together, as the database has their steps; none of a stage that told of none. A
    result does not wait for it: where the database is away, the metrics' route has it later."""
    if claim.kind not in TRAINED:
        return ()
    try:
        told = series.read(database, claim.owner, claim.job_id, claim.name)
        if not told.seqs:
            return ()
        blob = store.put_stream(series.as_event_file(told))
    except SQLAlchemyError as error:
        log.warning("no_curves stage_id=%s epoch=%s error=%r", claim.stage_id, claim.epoch, error)
        return ()
    return ((OUTPUT, f"events.out.tfevents.{told.began}.{claim.name}", blob.sha256, blob.size),)
