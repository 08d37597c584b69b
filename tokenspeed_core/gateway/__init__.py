# SPDX-License-Identifier: MIT
"""What the SMG gateway speaks: its gRPC service of an engine (the extra `smg`)."""
