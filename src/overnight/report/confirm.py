"""The finalists again, on fresh seeds: what is to be trained, as trials of a second ledger study NAME.confirm.

The search has chosen the finalists by one seed each, and so partly by luck. None of the seeds here had a say in that.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import time
from collections.abc import Iterable, Sequence

from overnight.protocol import Tested
from overnight.runner import trial_process
from overnight.runner.trial_spec import trial_spec
from overnight.search import deadline
from overnight.search.deadline import ConfirmationSize
from overnight.search.plan import CONFIRM_SUFFIX, Plan, derive_seed
from overnight.search.record import Confirms, TrialRecord, config_of, ranked
from overnight.search.space import SearchSpace
from overnight.study.session import StudySession
from overnight.system.devices import slot_devices

BASELINE = 0  # the configuration as written is a study's first trial
# Weights are kept until the test set was asked. Not the best of them: those of former finalists, of a study that was
# given more trials, would count, and the worst seeds of the new ones would go untested.
_ALL = 1_000_000


def finalists(plan: Plan, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The best complete trials of the search, each configuration once, best first; none where nothing is confirmed."""
    if not plan.confirmation_trials:
        return []
    distinct: dict[str, TrialRecord] = {}
    for record in ranked(records, plan.settings):
        distinct.setdefault(_key(plan, record), record)
    return list(distinct.values())[: plan.settings.study.confirm.top]


def baseline(plan: Plan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The trial of the configuration as written, or the finalist that equals it; None where it could not train."""
    first = next((r for r in records if r.number == BASELINE and r.state in ("complete", "pruned")), None)
    if first is None:
        return None
    same = (f for f in finalists(plan, records) if _key(plan, f) == _key(plan, first))
    return next(same, first)


def confirmation_plan(plan: Plan, records: Sequence[TrialRecord]) -> Plan:
    """The plan by which a search's confirmation runs: nothing searched, nothing pruned, every weight kept."""
    wanted = len(_wanted(plan, records))
    study = dataclasses.replace(
        plan.settings.study, name=plan.name + CONFIRM_SUFFIX, trials=max(wanted, 1), keep_checkpoints=_ALL, enqueue=()
    )
    sampler = dataclasses.replace(plan.settings.sampler, name="random")  # it is never asked
    pruner = dataclasses.replace(plan.settings.pruner, name="none")
    pictures = dataclasses.replace(plan.settings.pictures, when="never")
    settings = dataclasses.replace(plan.settings, study=study, sampler=sampler, pruner=pruner, pictures=pictures)
    return dataclasses.replace(plan, settings=settings, space=SearchSpace(()))


def affordable_size(
    plan: Plan, records: Sequence[TrialRecord], confirmations: Sequence[TrialRecord], room_s: float, slots: int
) -> ConfirmationSize:
    """The largest confirmation for which `room_s` is enough, less what is done of it."""
    epochs = plan.settings.trainer.max_epochs
    held = {_pair(r.confirms): r for r in confirmations if r.confirms is not None}
    everything = _wanted(plan, records)
    chosen = [f.number for f in finalists(plan, records)]

    def seconds(top: int, seeds: int) -> float:
        out = set(chosen[top:]) - {BASELINE}
        lengths = [
            deadline.confirmation_trial_s(c, held.get(_pair(c), r), confirmations, records, epochs)
            for r, c in everything
            if r.number not in out and c.nth_seed <= seeds and not (_pair(c) in held and held[_pair(c)].done)
        ]
        return deadline.confirmation_s(lengths, seeds, deadline.test_set_s(records), slots)

    return deadline.largest_affordable(len(chosen), plan.confirm_seeds, seconds, room_s)


def enqueue(
    session: StudySession, plan: Plan, records: Sequence[TrialRecord], top: int | None = None
) -> list[tuple[int, int]]:
    """Have every trial wait that the confirmation lacks: as often as this is said, each is trained once.

    Seed by seed, so that a confirmation that was cut has common seeds. top: how many finalists there is time for.
    Returns (trial, nth seed) of all that are wanted, in order.
    """
    wanted = _wanted(plan, records, top)
    pairs = [_pair(confirms) for _, confirms in wanted]
    with session.coordinator.lock("finalists"):
        session.coordinator.poll()
        held = {_pair(r.confirms) for r in session.records() if r.confirms is not None}
        for record, confirms in wanted:
            if _pair(confirms) not in held:
                session.queue.add_confirmation(config_of(record, plan), record.params, confirms)
        session.attributes.set_wanted(pairs)
    return pairs


def evaluate_on_test_set(session: StudySession, trials: Iterable[int], until: float, takes_s: float) -> bool:
    """Have the test set's word on these trials' networks kept in the ledger, for those that it was not asked of.

    until: when it must be through, in seconds since 1970; takes_s: seconds a network, as far as is known before the
    first. Returns False where that kept it from asking of all.
    """
    plan, tests = session.plan, session.attributes.tests
    settings = plan.settings
    for record in session.records():
        of = record.confirms
        if of is None or of.trial not in trials or record.state != "complete" or record.number in tests:
            continue
        if not (plan.paths.checkpoint(record.number) / "weights.ckpt").exists():
            if not session.coordinator.runs_all_trials:  # they may be in another machine's home
                continue
            session.attributes.add_test(Tested(record.number, {}, "its weights had been dropped when it won"))
            continue
        began = time.time()
        if not deadline.fits(takes_s, began, until):
            return False
        assert record.config is not None
        device = slot_devices(settings.slots)[0]
        spec = trial_spec(plan, record.number, record.config, of.seed, device, test=True)
        log = plan.paths.log(record.number)
        trial, said = trial_process.run_alone(spec, log, settings.trial.stall_s, until if until < math.inf else None)
        heard = next((m for m in said if isinstance(m, Tested)), None)
        if heard is None and trial.finished is not None and trial.finished.reason == "timed_out":
            return False
        if heard is None:
            assert trial.finished is not None
            lines = trial.finished.detail.strip().splitlines() or ["it did not say why"]
            heard = Tested(record.number, {}, f"the test failed: {lines[-1]}")
        session.attributes.add_test(heard)
        takes_s = time.time() - began
    return True


def drop_weights(session: StudySession, kept: int | None) -> None:
    """Remove the weights of every confirmation but one, the trial `kept`."""
    for record in session.records():
        if record.number != kept:
            shutil.rmtree(session.plan.paths.checkpoint(record.number), ignore_errors=True)


def _wanted(plan: Plan, records: Sequence[TrialRecord], top: int | None = None) -> list[tuple[TrialRecord, Confirms]]:
    trained = finalists(plan, records)[:top]
    first = baseline(plan, records)
    if trained and first is not None and first not in trained:
        trained.append(first)
    seeds = {n: derive_seed(plan.settings.seed, "confirm", n) for n in range(1, plan.confirm_seeds + 1)}
    return [(r, Confirms(r.number, n, seed)) for n, seed in seeds.items() for r in trained]


def _pair(confirms: Confirms) -> tuple[int, int]:
    return confirms.trial, confirms.nth_seed


def _key(plan: Plan, record: TrialRecord) -> str:
    return json.dumps(config_of(record, plan), sort_keys=True, default=str)
