# SPDX-License-Identifier: MIT
"""The subcommands of `tokenspeed`: each module has `HELP`, `add_arguments` and `run`."""
