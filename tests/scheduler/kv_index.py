# SPDX-License-Identifier: MIT
"""A router's view of a cache, rebuilt from KV events alone."""

from tokenspeed_core.ipc.kv_events import (
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    KvEventBatch,
)


class KvIndex:
    """Blocks by (parent, tokens); what is said twice or taken back without being there fails."""

    def __init__(self) -> None:
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}
        self.clears = 0

    def apply(self, batch: KvEventBatch) -> None:
        for event in batch.events:
            match event:
                case BlockStored():
                    self._store(event)
                case BlockRemoved():
                    for block in event.block_hashes:
                        del self.blocks[block]
                case AllBlocksCleared():
                    self.blocks.clear()
                    self.clears += 1

    def _store(self, event: BlockStored) -> None:
        parent, size = event.parent_block_hash, event.block_size
        assert len(event.token_ids) == size * len(event.block_hashes)
        for at, block in enumerate(event.block_hashes):
            assert block not in self.blocks
            self.blocks[block] = (parent, tuple(event.token_ids[at * size : (at + 1) * size]))
            parent = block

    def cached(self, prompt: list[int], block_size: int) -> int:
        """Return the tokens of the longest prefix of `prompt` that is in the index."""
        children = {content: block for block, content in self.blocks.items()}
        parent: int | None = None
        for at in range(0, len(prompt) - block_size + 1, block_size):
            found = children.get((parent, tuple(prompt[at : at + block_size])))
            if found is None:
                return at
            parent = found
        return len(prompt) // block_size * block_size
