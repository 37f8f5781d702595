"""What the JSON files of a run and of a model hold, checked before anything is made of them.

A folder may be anyone's, or half of it lost: a file that does not hold what its name says is one
message, and what it holds becomes no path.
"""

from .models import EXPORTED, MODULES, PROOFS, VERSIONS
from .reading import OBJECT, read_record
from .reports import TASK_REPORT
from .runs import LOG, TRAINER_LOG, TRAININGS
from .scores import MODEL_SCORES, RUN_SCORES

__all__ = [
    "EXPORTED",
    "LOG",
    "MODEL_SCORES",
    "MODULES",
    "OBJECT",
    "PROOFS",
    "RUN_SCORES",
    "TASK_REPORT",
    "TRAINER_LOG",
    "TRAININGS",
    "VERSIONS",
    "read_record",
]
