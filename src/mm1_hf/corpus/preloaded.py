"""What the server that forks a run's worker processes imports first, so that each worker need not import it again."""

import mm1_hf.corpus.html
import mm1_hf.corpus.steps
import mm1_hf.corpus.storage  # noqa: F401
from mm1_hf.corpus.orphans import end_children_with_this_process


end_children_with_this_process()
