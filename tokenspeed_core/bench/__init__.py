# SPDX-License-Identifier: MIT
"""Benches on dummy weights: the shapes that peers were measured on."""
