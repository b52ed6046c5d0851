"""The fences, and what stands there without each. A text that the code no longer has is an error."""

from __future__ import annotations

from dataclasses import dataclass

_VERBS = "tests/integration/service/test_verbs.py"
_RUNNER = "tests/integration/worker/test_runner.py"
_SCHEDULER = "tests/integration/worker/test_scheduler.py"
_SCHEDULING = "tests/unit/worker/test_scheduling.py"
_SUPERVISOR = "tests/unit/worker/test_supervisor.py"
_CLAIMS = "tests/unit/worker/test_claims.py"
_WORKERS = "tests/integration/service/test_workers.py"
_KEEPING = "tests/integration/worker/test_keeping.py"
_STORE = "tests/unit/service/storage/test_local.py"
_STALE = f"{_VERBS}::test_a_stale_epoch_changes_nothing"

_ATTEMPTS = "service/jobs/running/attempts.py"
_REPOSITORY = "service/jobs/repository/__init__.py"
_NOW = "_stage(session, stage_id).epoch"
"""Whatever epoch the stage has: so every caller has the right one."""


@dataclass(frozen=True)
class Fence:
    """What keeps a promise: its name, the text of a file that it is, what stands there without it, and its test."""

    name: str
    path: str
    text: str
    without: str
    test: str


FENCES = (
    Fence(
        "epoch in a claim",
        _ATTEMPTS,
        "repository.take_stage(session, stage_id, epoch, worker,",
        f"repository.take_stage(session, stage_id, {_NOW}, worker,",
        f"{_RUNNER}::test_a_made_up_message_is_dropped",
    ),
    Fence(
        "a claim by whom it was given to",
        _REPOSITORY,
        "guard.where(Stage.worker == worker, Stage.code.in_(codes))",
        "guard.where(Stage.code.in_(codes))",
        f"{_WORKERS}::test_a_stage_is_claimed_by_the_worker_that_it_was_given_to_and_no_other",
    ),
    Fence(
        "a claim by the code that it was planned for",
        _REPOSITORY,
        "guard.where(Stage.worker == worker, Stage.code.in_(codes))",
        "guard.where(Stage.worker == worker)",
        f"{_WORKERS}::test_a_worker_of_other_code_neither_gets_nor_claims_a_stage",
    ),
    Fence(
        "epoch in a beat",
        _ATTEMPTS,
        "alive = repository.guarded_update(session, stage_id, epoch,",
        f"alive = repository.guarded_update(session, stage_id, {_NOW},",
        _STALE,
    ),
    Fence(
        "epoch in an event",
        _ATTEMPTS,
        "stage is None or stage.epoch != epoch or",
        "stage is None or",
        _STALE,
    ),
    Fence(
        "epoch in a finish",
        _ATTEMPTS,
        "_leave(session, stage_id, epoch, StageStatus.SUCCEEDED,",
        f"_leave(session, stage_id, {_NOW}, StageStatus.SUCCEEDED,",
        _STALE,
    ),
    Fence(
        "epoch in a failure",
        _ATTEMPTS,
        "_leave(session, stage_id, epoch, target,",
        f"_leave(session, stage_id, {_NOW}, target,",
        _STALE,
    ),
    Fence(
        "epoch in giving back",
        _ATTEMPTS,
        "_leave(session, stage_id, epoch, again,",
        f"_leave(session, stage_id, {_NOW}, again,",
        _STALE,
    ),
    Fence(
        "epoch in a stop",
        _ATTEMPTS,
        "_leave(session, stage_id, epoch, StageStatus.CANCELLED,",
        f"_leave(session, stage_id, {_NOW}, StageStatus.CANCELLED,",
        _STALE,
    ),
    Fence(
        "epoch of a kept checkpoint",
        "service/jobs/running/keeping.py",
        "guarded_update(session, stage_id, epoch, [StageStatus.RUNNING], epoch=Stage.epoch)",
        "guarded_update(session, stage_id, 1, [StageStatus.RUNNING], epoch=Stage.epoch) and False",
        f"{_KEEPING}::test_a_stage_that_lost_its_claim_names_no_checkpoint",
    ),
    Fence(
        "one commit: the status in every write",
        _REPOSITORY,
        "where(Stage.id == stage_id, Stage.epoch == epoch, Stage.status.in_(statuses))",
        "where(Stage.id == stage_id, Stage.epoch == epoch)",
        f"{_VERBS}::test_a_result_is_committed_once",
    ),
    Fence(
        "a beat that came between looking and taking",
        _ATTEMPTS,
        "if stage is None or stage.beat != beat:",
        "if stage is None:",
        f"{_VERBS}::test_a_lost_lease_counts_and_a_beat_keeps_it",
    ),
    Fence(
        "self-kill: a supervisor whose lease is over",
        "worker/supervisor.py",
        "self.lease_lost or now - self.renewed > self.lease",
        "self.lease_lost",
        f"{_SUPERVISOR}::test_no_beat_for_a_lease_kills_everything",
    ),
    Fence(
        "self-kill: a supervisor whose runner is gone",
        "worker/supervisor.py",
        "            watched.remove(orders)\n            supervision.stop()\n",
        "            watched.remove(orders)\n",
        f"{_SUPERVISOR}::test_sigkill_of_the_runner_leaves_nothing",
    ),
    Fence(
        "self-kill: a command whose supervisor is gone",
        "worker/supervisor.py",
        "        preexec_fn=partial(die_with, os.getpid()),",
        "        preexec_fn=None,",
        f"{_SUPERVISOR}::test_sigkill_of_the_supervisor_ends_the_command_and_a_sweep_the_rest",
    ),
    Fence(
        "a supervisor is the ancestor of all that it starts",
        "worker/supervisor.py",
        "    adopt()\n",
        "",
        f"{_SUPERVISOR}::test_the_commands_end_ends_what_it_started_and_gives_its_status",
    ),
    Fence(
        "a worker that reaches no database gives its stage back",
        "worker/heart.py",
        "return boot_seconds() - self._last_success > self._patience",
        "return False",
        f"{_RUNNER}::test_a_heart_without_a_database_says_so_after_its_patience",
    ),
    Fence(
        "a database that nobody can write to costs no lease",
        "worker/heart.py",
        "self._renew()  # the lease is still ours",
        "pass  # the lease is still ours",
        f"{_RUNNER}::test_a_lock_that_another_program_holds_on_the_database_costs_no_lease",
    ),
    Fence(
        "ring again",
        "worker/scheduling.py",
        "(rung is None or now - rung < self.policy.ring_again)",
        "True",
        f"{_SCHEDULING}::test_an_unclaimed_stage_is_rung_for_again_after_a_minute",
    ),
    Fence(
        "a silent owner loses its stage",
        "worker/scheduling.py",
        "if self._leases.still(_sign(stage), now) >= self.policy.lease]",
        "if False]",
        f"{_SCHEDULING}::TestWorld",
    ),
    Fence(
        "a lease is waited out",
        "worker/scheduling.py",
        "if self._leases.still(_sign(stage), now) >= self.policy.lease]",
        "if self._leases.still(_sign(stage), now) >= 0]",
        f"{_SCHEDULING}::TestWorld",
    ),
    Fence(
        "time in which nobody looked is no evidence",
        "worker/scheduling.py",
        "        if gap > self.policy.blind:\n",
        "        if False:\n",
        f"{_SCHEDULING}::test_time_in_which_nobody_looked_is_no_evidence",
    ),
    Fence(
        "a broker that hangs is no blindness",
        "worker/scheduling.py",
        '        could have beaten in it."""\n        self._looked = now\n',
        '        could have beaten in it."""\n',
        f"{_SCHEDULER}::test_a_broker_that_hangs_on_every_ring_is_no_blindness",
    ),
    Fence(
        "leadership: a silent leader is succeeded",
        "worker/leader.py",
        "self._seen if silent else None)",
        "None)",
        f"{_SCHEDULER}::test_a_leader_that_is_silent_for_a_lease_leads_no_more_and_finds_out",
    ),
    Fence(
        "leadership: a lease is waited out",
        "worker/leader.py",
        "self._seen if silent else None)",
        "self._seen)",
        f"{_SCHEDULER}::test_a_leader_that_is_silent_for_a_lease_leads_no_more_and_finds_out",
    ),
    Fence(
        "leadership: a beat renews it",
        "service/jobs/running/leases.py",
        "lease.holder, lease.beat = holder, lease.beat + 1",
        "lease.holder, lease.beat = holder, 1",
        f"{_SCHEDULER}::test_a_leader_that_beats_leads_on_whatever_the_others_clocks_say",
    ),
    Fence(
        "leadership: its lease is a compare-and-set",
        "service/jobs/running/leases.py",
        'if lease.holder in ("", holder) or Sign(lease.holder, lease.beat) == silent:',
        "if True:",
        f"{_SCHEDULER}::test_of_two_schedulers_one_acts_until_it_ends",
    ),
    Fence(
        "claims' locks",
        "worker/claims.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX)\n",
        "",
        f"{_CLAIMS}::test_a_claim_lives_as_long_as_its_process",
    ),
    Fence(
        "a work folder has one user",
        "worker/workspace.py",
        "        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "        pass\n",
        "tests/unit/worker/test_workspace.py::test_two_stages_with_the_same_digest_never_share_a_work_folder_at_once",
    ),
    Fence(
        "verify on read",
        "service/storage/checksums.py",
        "    if digest.hexdigest() != sha256:\n        raise Corrupt(sha256)\n    if held:",
        "    if held:",
        f"{_STORE}::test_a_flipped_bit_and_a_cut_file_are_found",
    ),
    Fence(
        "verify on reading a part",
        "service/storage/local.py",
        "if checksums.of(chunk) != sums[place // CHUNK]:",
        "if False:",
        f"{_STORE}::test_a_part_with_damage_in_its_chunks_is_never_given",
    ),
    Fence(
        "the checkpoint before the newest is kept",
        "service/jobs/running/keeping.py",
        "KEPT = 2\n",
        "KEPT = 1\n",
        f"{_KEEPING}::test_two_are_kept_at_a_time_and_their_contents_are_held",
    ),
    Fence(
        "who sweeps takes no blob that came again",
        "service/storage/local.py",
        "if mark is not None and _mark(path.stat()) != mark:",
        "if False:",
        f"{_STORE}::test_a_blob_stored_again_outlives_who_meant_the_earlier_one",
    ),
    Fence(
        "attempts count only without progress",
        _ATTEMPTS,
        'progress["fruitless"] = case((further, 0), else_=Stage.fruitless)',
        "pass",
        f"{_RUNNER}::test_a_stage_that_gets_further_each_time_is_never_failed_for_its_deaths",
    ),
    Fence(
        "a full disk is waited for",
        "worker/outcome.py",
        "        if code == DISK_FULL:\n            return NoRoom()\n",
        "",
        "tests/integration/worker/test_room.py",
    ),
    Fence(
        "a stage that stands still is ended",
        "worker/runner.py",
        "elif not stopped and pace.stalls(time.monotonic()):",
        "elif False:",
        f"{_RUNNER}::test_a_trainer_that_stands_still_is_ended_and_its_stack_told",
    ),
    Fence(
        "what was done is remembered with it",
        "service/jobs/access/repetition.py",
        "            _remember(session, call, answer, now)\n",
        "",
        "tests/integration/service/test_repetition.py::test_an_idempotency_key_makes_one_job",
    ),
    Fence(
        "what an earlier attempt left is ended before the next begins",
        "worker/runner.py",
        "        sweep(stage_id)\n",
        "",
        f"{_KEEPING}::test_what_an_earlier_attempt_left_running_is_ended_before_the_next_begins",
    ),
    Fence(
        "times that break fencing are refused",
        "service/settings.py",
        "        if fence >= lease:\n",
        "        if False:\n",
        "tests/unit/service/test_settings.py::test_times_that_break_fencing_are_refused_together",
    ),
    Fence(
        "the code that a stage was planned for, in the engine",
        "allo_engine/__main__.py",
        'if task.get("code", stage_code(stage)) != stage_code(stage):',
        'if task.get("code") == "":',
        "tests/unit/engine/test_main.py::test_a_stage_that_was_planned_for_other_code_does_not_run",
    ),
    Fence(
        "an engine that was replaced beside its worker",
        "worker/runner.py",
        "        if self.replaced():\n",
        "        if self.replaced() is None:\n",
        f"{_RUNNER}::test_a_worker_whose_engine_was_replaced_beside_it_starts_nothing",
    ),
    Fence(
        "the store asked outside of transactions",
        "service/jobs/presence.py",
        "    if answers is None:\n",
        "    if answers is None or True:\n",
        "tests/integration/service/test_reuse.py::test_a_store_that_does_not_answer_holds_up_no_transaction",
    ),
    Fence(
        "a worker whose store is another",
        "worker/scheduler.py",
        "            if self.reads():\n",
        "            if True:\n",
        f"{_SCHEDULER}::test_a_worker_with_another_store_is_given_nothing_until_it_has_the_services",
    ),
    Fence(
        "a store with the same contents is another",
        "service/jobs/data/marking.py",
        "return [marker.sha256] if marker else holdings.latest(session, 3)",
        "return holdings.latest(session, 3)",
        f"{_SCHEDULER}::test_a_worker_with_the_store_of_a_service_that_has_the_same_contents_is_given_nothing",
    ),
    Fence(
        "a mount that was lost is no empty store",
        "service/storage/local.py",
        "            if self._lock.exists():\n                raise\n",
        "            raise\n",
        f"{_STORE}::test_a_folder_that_was_a_mount_and_is_none_any_more_is_away_and_holds_no_less",
    ),
    Fence(
        "a worker's name is what it was",
        "worker/offer.py",
        "@cache\ndef _name",
        "def _name",
        "tests/integration/worker/test_faults.py::test_a_host_that_is_renamed_under_its_worker_goes_on_with_the_next_stage",
    ),
    Fence(
        "who does not stop for a pause is killed",
        "worker/supervisor.py",
        "return self.lease_lost or (self.kill_at is not None and now >= self.kill_at)",
        "return self.lease_lost",
        f"{_RUNNER}::test_a_paused_job_whose_trainer_does_not_stop_has_its_device_free_after_the_grace_uncounted",
    ),
    Fence(
        "a result is its owner's",
        _REPOSITORY,
        "Job.id == Stage.job_id).where(Job.owner == owner)\n    query = query.where(Stage.digest",
        "Job.id == Stage.job_id)\n    query = query.where(Stage.digest",
        "tests/integration/service/test_reuse.py"
        "::test_what_one_owner_computed_is_computed_again_for_another_and_nothing_tells_of_it",
    ),
    Fence(
        "room on the other worker's disk",
        "service/jobs/running/dispatch.py",
        " and offers[name].free_bytes >= room",
        "",
        "tests/integration/worker/test_room.py"
        "::test_a_stage_goes_on_on_another_worker_that_has_room_and_stays_where_none_has",
    ),
    Fence(
        "what is done and what is remembered of it are one",
        "service/jobs/access/repetition.py",
        "            answer = do()\n            call.note(answer)\n            _remember(session, call, answer, now)\n",
        "            answer = do()\n            session.commit()\n            call.note(answer)\n"
        "            _remember(session, call, answer, now)\n",
        "tests/integration/service/test_repetition.py"
        "::test_what_is_done_and_what_is_remembered_of_it_are_one_transaction",
    ),
    Fence(
        "one question to a silent store is waited for",
        "worker/prompt.py",
        "0 if late else self._seconds",
        "self._seconds",
        "tests/unit/worker/test_prompt.py::test_while_one_question_is_waited_for_no_other_is",
    ),
    Fence(
        "what runs in a container is its own",
        "worker/sweep.py",
        ".environ()) if alike else {}",
        ".environ())",
        f"{_KEEPING}::test_what_runs_in_a_container_of_its_own_is_never_swept",
    ),
    Fence(
        "an event is no earlier than the one before",
        "service/jobs/progression.py",
        "created_at=max(now, before or now),",
        "created_at=now,",
        f"{_VERBS}::test_whatever_the_clocks_say_events_have_times_in_their_order_and_stages_took_their_seconds",
    ),
)
