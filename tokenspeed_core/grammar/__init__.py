# SPDX-License-Identifier: MIT
"""Answers that must have a form: what a request asks, its compilation, and the masks of a step."""
