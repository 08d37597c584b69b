# SPDX-License-Identifier: MIT
"""How a model writes its reasoning and its tool calls in text, and the reading of such text."""
