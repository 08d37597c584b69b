# SPDX-License-Identifier: MIT
"""A deployment on paper: traces through the real scheduler core against a device's roofline."""
