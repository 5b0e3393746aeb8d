"""Run folders: `runs/<name>/<time>/`, what is kept in them beside the checkpoint, and what a run can go on from."""

from mmfusion.runs.folder import RunError, create, discard, refuse_used, timestamp, write
from mmfusion.runs.history import bring_history_back, curves, set_history_aside
from mmfusion.runs.listing import Run, find, read
from mmfusion.runs.provenance import commit, environment, masked, processor, without_secrets
from mmfusion.runs.resume import ENDED, ended_at, newest_good, require_points, resume_points, step_of
from mmfusion.runs.status import Status, beating, mark, refuse_running

__all__ = [
    "ENDED", "Run", "RunError", "Status", "beating", "bring_history_back", "commit", "create", "curves",
    "discard", "ended_at", "environment", "find", "mark", "masked", "newest_good", "processor", "read",
    "refuse_running", "refuse_used", "require_points", "resume_points", "set_history_aside", "step_of", "timestamp",
    "without_secrets", "write",
]  # fmt: skip
