# SPDX-License-Identifier: MIT
"""The one message that workers act on; columns and their types as in `messages`."""

import msgspec

ROW_HAS_TOKENS = 1
ROW_SAMPLES = 2
ROW_DRAFTS = 4


class StepPlan(msgspec.Struct, frozen=True, array_like=True, gc=False, tag=30):
    """One step for every rank, as deltas against what the worker already knows.

    Applied in field order: slots are removed, then added (with the blocks that they keep, the last
    columns), then blocks appended, copies made, transfers started, rows run.  A store reads what
    earlier steps wrote; a row whose slot waits for a load may run a layer once that layer is
    loaded; such rows sample nothing.  A step may have no rows, only transfers.
    A group's table holds its blocks in token order.  WINDOW: an id 0 is a block that nobody reads,
    and a query at position p reads positions p - span + 1 to p only; blocks before those may hold
    anything.  STATE: the last id is the live state, earlier ones are not the slot's any more; a row
    reads it (zeros where the slot's context is 0) and leaves there the state after its tokens.
    Copies read all their sources before they write a target.
    Travels as two frames: these bytes, then the 16-byte running digest
    `siphash128(key=previous digest, bytes)`; an epoch's first previous digest is the epoch number
    as 16 little-endian bytes.
    """

    epoch: int
    step: int  # counts from 1 in each epoch, no gaps
    removed_slots: bytes = b""  # i32
    added_slots: bytes = b""  # i32
    added_context: bytes = b""  # i32: tokens whose KV is already in the slot's blocks
    added_temperature: bytes = b""  # f32
    added_top_k: bytes = b""  # i32
    added_top_p: bytes = b""  # f32
    added_seed: bytes = b""  # u64
    added_logprobs: bytes = b""  # u8
    block_slots: bytes = b""  # i32: append block_ids[i] to table block_groups[i] of this slot
    block_groups: bytes = b""  # i32
    block_ids: bytes = b""  # i32
    copy_groups: bytes = b""  # i32: copy block copy_sources[i] onto copy_targets[i]
    copy_sources: bytes = b""  # i32
    copy_targets: bytes = b""  # i32
    prefix_slots: bytes = b""  # i32: this slot now shares its leading blocks ...
    prefix_groups: bytes = b""  # i32: ... with the slots of this prefix group (-1: with none)
    prefix_blocks: bytes = b""  # i32: ... namely this many
    rows: bytes = b""  # i32: the slot of each row; rows of one token come first
    row_tokens: bytes = b""  # i32: query tokens of the row
    row_flags: bytes = b""  # u8: bit 0 tokens are in prompt_tokens, else the slot's last sampled
    #                              token is the input; bit 1 the row samples a token; bit 2 the
    #                              last sampled token is followed by row_tokens - 1 drafts of the
    #                              worker's own, and the result says how many were accepted
    prompt_tokens: bytes = b""  # i32: rows with bit 0 back to back
    store_tickets: bytes = b""  # i32: copy block store_sources[i] to host block store_targets[i]
    store_groups: bytes = b""  # i32
    store_sources: bytes = b""  # i32
    store_targets: bytes = b""  # i32
    load_tickets: bytes = b""  # i32: copy host block load_sources[i] to block load_targets[i]
    load_groups: bytes = b""  # i32
    load_sources: bytes = b""  # i32
    load_targets: bytes = b""  # i32
    wait_slots: bytes = b""  # i32: from this step on this slot's rows wait ...
    wait_tickets: bytes = b""  # i32: ... for this load
    # Sampling.shaping of the added slots back to back; slots beyond the last size have none.
    added_shaping_bytes: bytes = b""  # i32
    added_shaping: bytes = b""  # u8
    added_output_counts: bytes = b""  # i32: with shaping, the tokens generated before, likewise
    added_outputs: bytes = b""  # i32
    kept_slots: bytes = b""  # i32: this added slot's table of a group begins with ...
    kept_groups: bytes = b""  # i32
    kept_blocks: bytes = b""  # i32: ... so many leading blocks of the last one that the slot had
    # Before `rows` stand so many of the first rows of the last step, which sampled a token each
    # and do so again.
    repeated_rows: int = 0
