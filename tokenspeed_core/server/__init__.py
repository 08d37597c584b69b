# SPDX-License-Identifier: MIT
"""The OpenAI-compatible HTTP server: one process of an engine."""
