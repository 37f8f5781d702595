# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""What a model makes once, at its first use, is made under one lock.

After that a call only reads: nothing of a model changes while it answers, so that any number of
threads may call it. What belongs to one call goes along with it, as arguments or in ContextVars.
"""

import os
import threading

FIRST_USE = threading.RLock()  # loading; what can_pack and set_compute find; copies of tokenizers

if hasattr(os, "register_at_fork"):  # a child must not get a lock that a thread it lacks has taken
    os.register_at_fork(
        before=FIRST_USE.acquire,
        after_in_parent=FIRST_USE.release,
        after_in_child=FIRST_USE.release,
    )
