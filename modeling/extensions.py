# SPDX-License-Identifier: Apache-2.0
# Part of Polyhead; travels with every saved model. Source: the `modeling/` folder of the project.
"""The files with heads, poolings and losses that a model's makers added to ours.

In the package there are none: a user imports them. In a saved folder those that its config.json
lists under `extensions` are imported here; what they register belongs to that folder's code alone.
"""

EXTENSIONS: list[str] = []  # names of the modules
