"""Names of the attributes that overnight keeps on Optuna's trials and studies."""

from __future__ import annotations

# Of a trial -----------------------------------------------------------------------------------------------------------

HISTORY = "overnight.history"  # the metrics of each epoch, packed; see `history.pack_history`
UNTIL = "overnight.until"  # the epochs to which its scheduler lets it train; it pauses there
PEAK_BYTES = "overnight.peak_bytes"  # the largest memory that its process was seen to hold
REASON = "overnight.reason"  # why it failed, in one word
DETAIL = "overnight.detail"  # why it failed, in full
ATTEMPTS = "overnight.attempts"  # how often in a row it crashed without progress
SAMPLER = "overnight.sampler"  # system attribute: what its sampler stored in the study, by name
NOTES = "overnight.notes"  # lines for its pages in MLflow

# Of a trial that was given rather than sampled: the baseline, an entry of study.enqueue or of study.warm_start_from.
ENTRY = "overnight.entry"  # the entry as the user wrote it
VALUES = "overnight.values"  # searched key -> value
OUTSIDE = "overnight.outside"  # those searched keys whose values are outside the space

# Of a trial that brings its own configuration: one of `train`, or one of a confirmation.
CONFIG = "overnight.config"
TRAINING = "overnight.training"  # its seed, metric, direction and objective
PARAMS = "overnight.params"  # the parameters of the trial that it confirms, for display
CONFIRMS = "overnight.confirms"  # which trial it confirms; see `record.Confirms`

# Optuna's own, of a study: the names of its objectives
METRIC_NAMES = "study:metric_names"

# Of a study -----------------------------------------------------------------------------------------------------------

PLAN = "overnight.plan"  # as JSON
READY = "overnight.ready"  # True once the study is created in full
UID = "overnight.uid"  # distinguishes this study's MLflow runs from those of a study of the same name elsewhere
STOP = "overnight.stop"  # True once a stop was requested
MLFLOW = "overnight.mlflow"  # the identifiers of its experiment and of its parent run
EXCLUDED = "overnight.excluded"  # number of an excluded trial, as text -> why
LAUNCH = "overnight.launch"  # the last launch: its deadline, and what ended it; see `limits.Launch`
FINISHED = "overnight.finished"  # what its last launch left in both stores, once finished; see `report.finished`
FIRST_RUNG = "overnight.first_rung"  # the epochs before the first pause, once an epoch was measured
TESTED = "overnight.tested."  # prefix of a trial's number -> when the test set was asked of it by hand, and its scores

# Of a confirmation.
WANTED = "overnight.wanted"  # (trial, nth seed) of every run that is asked for
TESTS = "overnight.tests"  # scores on the test set

# Of a study that several processes share.
CLOSED = "overnight.closed"  # True once no worker needs to join, until the next launch
LAUNCHED_AT = "overnight.launched_at"  # when work on the last launch began, in seconds since 1970
PUBLISHED = "overnight.published"  # how many trials, confirmations and tests the published answer covers
REFUSED = "overnight.refused."  # prefix of a host name -> why its worker refuses the study, line by line
