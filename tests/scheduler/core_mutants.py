# SPDX-License-Identifier: MIT
"""Mistakes seeded into the core, each of which the fuzzer or a unit test must find.

`python core_mutants.py BUILD` takes a CMake build directory with `fuzz_scheduler`, `test_kv` and
`test_host_pool` in it, compiles each mutant's files anew, links them before the library, and prints
what killed it.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "scheduler" / "csrc"
MAX_EVENTS = 4_000_000
LIMIT_S = 1200


class StaleMutantError(ValueError):
    """A mutant's text is not in the sources any more: write the mutant anew."""


@attrs.frozen
class Edit:
    """`old`, which occurs once in `file`, becomes `new`."""

    file: str
    old: str
    new: str


@attrs.frozen
class Mutant:
    """A mistake; `premise` are edits that are no mistake and without which it cannot be seen."""

    meaning: str
    edits: tuple[Edit, ...]
    premise: tuple[Edit, ...] = ()


# Every lookup meets entries of other content: only what is compared on a hit keeps them apart.
COLLISIONS = (
    Edit(
        "kv/hash_chain.cpp",
        "return {hashes_[block + 1], hashes_[block]};",
        "Hash128 weak;\n  weak.bytes[0] = hashes_[block + 1].bytes[0] & std::byte{7};\n"
        "  return {weak, hashes_[block]};",
    ),
)

MUTANTS = (
    Mutant(
        "a trail is followed to blocks that others have taken since",
        (
            Edit(
                "kv/block_pool.cpp",
                "if (mark.life % 2 == 0 || "
                "lives_[static_cast<size_t>(mark.id.value)] != mark.life) return;",
                "if (lives_[static_cast<size_t>(mark.id.value)] % 2 == 0) return;",
            ),
        ),
    ),
    Mutant(
        "a prompt takes its session's trail beyond where they part",
        (
            Edit(
                "plan/miss.cpp",
                "  if (same < trail->blocks.size()) trail->blocks.resize(same);\n",
                "",
            ),
        ),
    ),
    Mutant(
        "a prompt is believed to extend whichever prompt was the last",
        (
            Edit(
                "plan/miss.cpp",
                "origin.extends != 0 && entry.prompt_id == origin.extends;",
                "origin.extends != 0;",
            ),
        ),
    ),
    Mutant(
        "a released block is free at once, not when its step retires",
        (
            Edit(
                "kv/block_pool.cpp",
                "InFlightBlock block(id, planned_);\n  if (planned_ > retired_) {",
                "InFlightBlock block(id, retired_);\n  if (planned_ < retired_) {",
            ),
        ),
    ),
    Mutant(
        "the fence falls one step early",
        (
            Edit("kv/block_pool.cpp", "  retired_ = step;\n", "  retired_ = planned_;\n"),
            Edit("kv/block_pool.cpp", "node(id).fence <= step;", "node(id).fence <= retired_;"),
            Edit("kv/block_pool.cpp", 'step > retired_, "retired', 'step > StepId{}, "retired'),
        ),
    ),
    Mutant(
        "an unordered reader gets a block before its write retires",
        (
            Edit(
                "kv/block.cpp",
                "  if (!pool_->IsRetired(id_, proof)) return std::nullopt;\n",
                "  static_cast<void>(proof);\n",
            ),
        ),
    ),
    Mutant(
        "a hit does not compare the tokens",
        (
            Edit(
                "kv/block_pool.cpp",
                "|| !SameTokens(own, tokens)) return",
                "|| own.size() != tokens.size()) return",
            ),
        ),
        COLLISIONS,
    ),
    Mutant(
        "a hit does not compare what stands before it",
        (
            Edit(
                "kv/block_pool.cpp",
                "node(*id).key.parent != key.parent || !SameTokens",
                "!SameTokens",
            ),
        ),
        COLLISIONS,
    ),
    Mutant(
        "a holder of a block is counted twice",
        (Edit("kv/block_pool.cpp", "  ++u.holders;\n", "  u.holders += 2;\n"),),
    ),
    Mutant(
        "an evicted block stays in the index",
        (Edit("kv/block_pool.cpp", "  Unindex(id);\n  Unlink(id);\n", "  Unlink(id);\n"),),
    ),
    Mutant(
        "a block is sealed before its last token is known",
        (
            Edit(
                "plan/planning.cpp",
                "std::min(context, request.known())",
                "std::min(context, request.known() + 1)",
            ),
        ),
    ),
    Mutant(
        "a preempted request is queued again before its tokens are in",
        (
            Edit(
                "plan/preemption.cpp",
                "  if (std::get_if<fsm::Preempted>(&request.state)->overlap.empty()) {",
                "  if (std::holds_alternative<fsm::Preempted>(request.state)) {",
            ),
        ),
    ),
    Mutant(
        "a token that overran its request goes to the slot's next one",
        (
            Edit(
                "plan/results.cpp",
                "if (place.first <= step) return place.request;",
                "if (place.request != nullptr) return place.request;",
            ),
        ),
    ),
    Mutant(
        "the salt is not in the root of the chain",
        (
            Edit(
                "kv/hash_chain.cpp",
                "std::span(salt.data(), salt.size())",
                "std::span(salt.data(), size_t{0})",
            ),
        ),
    ),
    Mutant(
        "drafts count as accepted",
        (
            Edit(
                "plan/results.cpp",
                ".tokens = std::max(1, taken), .block",
                ".tokens = width, .block",
            ),
        ),
    ),
    Mutant(
        "blocks cover what drafts bring at least, not at most",
        (
            Edit(
                "plan/drafting.cpp",
                "Reach(state.table, state.groups) - state.ceiling();",
                "Reach(state.table, state.groups) - state.context;",
            ),
        ),
    ),
    Mutant(
        "a prefix resumes where a state has no snapshot",
        (
            Edit(
                "plan/boundary.cpp",
                "const bool states = ResumesStates(request, end, host);",
                "const bool states = end > 0;",
            ),
            Edit(
                "plan/boundary.cpp",
                "    TS_CHECK(block || found.loaded > 0, "
                '"group " << group << " lost a block at token " << end);\n',
                "    if (!block && found.loaded == 0) return;\n",
            ),
        ),
    ),
    Mutant(
        "a snapshot is sealed in the plan whose rows make it",
        (
            Edit(
                "plan/planning.cpp",
                "    SealReady(request, state.table, state.context, id);\n"
                "    if (grouped()) SealGroups(request, state.groups, state.context);\n",
                "    SealReady(request, state.table, state.context, id);\n"
                "    if (grouped()) SealGroups(request, state.groups, state.context);\n"
                "    PrepareSnapshots(request, state.groups, state.context);\n"
                "    PlanCopies(state.groups, id, state.context);\n",
            ),
        ),
    ),
    Mutant(
        "a window gives up a block that its next query reads",
        (
            Edit(
                "kv/group_table.cpp",
                "context + 1 - spec_.span) / spec_.tokens",
                "context + 2 - spec_.span) / spec_.tokens",
            ),
        ),
    ),
    Mutant(
        "a parent is idle while one of its blocks is in flight",
        (
            Edit(
                "kv/parent_pool.cpp",
                "  if (--own.busy > 0) return;\n",
                "  if (--own.busy > 1) return;\n",
            ),
        ),
    ),
    Mutant(
        "a table at rest is taken up beyond what the prompt shares with it",
        (
            Edit(
                "kv/table_rest.cpp",
                "std::min(table.blocks.size(), static_cast<size_t>(most));",
                "std::max(table.blocks.size(), static_cast<size_t>(most * 0));",
            ),
        ),
    ),
    Mutant(
        "workers keep as many blocks as they had, whichever those are",
        (
            Edit(
                "plan/planning.cpp",
                "return table.sealed_at(i).id().value == block; });",
                "return table.sealed_at(i).id().value + block > 0; });",
            ),
        ),
    ),
    Mutant(
        "a plan repeats the row of a slot that was left",
        (
            Edit(
                "plan/decode_batch.cpp",
                "  repeated_ = std::min(repeated_, static_cast<int>(hole));\n",
                "",
            ),
        ),
    ),
    Mutant(
        "a state goes on from a snapshot whose load is under way",
        (
            Edit(
                "plan/planning.cpp",
                "  if (!request.loads.empty() && !state.groups.states.empty()) return;\n",
                "",
            ),
        ),
    ),
    Mutant(
        "a window's blocks are sealed over loads that may fail",
        (
            Edit(
                "plan/grouping.cpp",
                "int context) {\n  if (!request.loads.empty()) return;\n",
                "int context) {\n",
            ),
        ),
    ),
    Mutant(
        "a host parent goes to another group while a load reads it",
        (
            Edit(
                "kv/host_pool.cpp",
                "    if (node(HostBlockId{i}).holders > 0) return false;\n",
                "",
            ),
        ),
    ),
    Mutant(
        "accepted drafts are not counted in windows",
        (Edit("fsm/transitions.cpp", "  state.groups.Accept(accepted);\n", ""),),
    ),
    Mutant(
        "a window slides to where drafts may bring it, not where they do",
        (
            Edit(
                "plan/drafting.cpp",
                "    Touch(request, state->groups, state->context);\n",
                "    Touch(request, state->groups, state->ceiling());\n",
            ),
        ),
    ),
    Mutant(
        "a rank's report counts twice",
        (Edit("plan/step_quorum.cpp", "  if (ack) return Verdict::kIgnored;\n", ""),),
    ),
)


class Bench:
    """Builds and runs variants of the core."""

    def __init__(self, build: Path, folder: Path) -> None:
        self.build = build
        self.folder = folder

    def compile(self, name: str, edits: tuple[Edit, ...]) -> list[Path]:
        """Return the objects of the files that the edits change."""
        texts: dict[str, str] = {}
        for edit in edits:
            text = texts.get(edit.file) or (SOURCES / edit.file).read_text()
            if text.count(edit.old) != 1:
                raise StaleMutantError(f"{edit.file} has {text.count(edit.old)} of {edit.old!r}")
            texts[edit.file] = text.replace(edit.old, edit.new)
        objects = []
        for file, text in texts.items():
            source = self.folder / f"{name}_{file.replace('/', '_')}"
            source.write_text(text)
            objects.append(source.with_suffix(".o"))
            options = ["-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", f"-I{SOURCES}"]
            # as the build has it, or the objects would not fit together
            command = ["c++", *options, *self._definitions(), "-c", str(source)]
            subprocess.run([*command, "-o", str(objects[-1])], check=True)
        return objects

    def _definitions(self) -> list[str]:
        rules = (self.build / "build.ninja").read_text()
        block = rules[rules.index("scheduler_core.dir/csrc/kv/block_pool.cpp.o:") :]
        flags = re.search(r"FLAGS = (.*)", block)
        assert flags is not None
        return [flag for flag in flags[1].split() if flag.startswith("-fsanitize")]

    def run(self, program: str, objects: list[Path], *arguments: str) -> tuple[bool, str]:
        """Return whether the program finds nothing, and what it prints."""
        binary = self.folder / program
        main = self.build / "native" / "CMakeFiles" / f"{program}.dir" / f"{program}.cpp.o"
        library = self.build / "libscheduler_core.a"
        command = ["c++", *self._definitions(), str(main), *map(str, objects), str(library)]
        subprocess.run([*command, "-o", str(binary)], check=True)
        done = subprocess.run(
            [str(binary), *arguments], capture_output=True, text=True, timeout=LIMIT_S
        )
        return done.returncode == 0, done.stderr

    def killer(self, name: str, mutant: Mutant) -> str | None:
        """Return what finds the mutant, None if nothing does."""
        objects = self.compile(name, (*mutant.premise, *mutant.edits))
        tests = ("test_kv", "test_host_pool") if not mutant.premise else ()
        unit = next((test for test in tests if not self.run(test, objects)[0]), None)
        box = str(self.folder / "box")
        survives, output = self.run("fuzz_scheduler", objects, str(MAX_EVENTS), "1", box)
        if survives:
            return unit
        events = re.search(r"found after (\d+) events", output)
        shrunk = re.search(r"these (\d+) of", output)
        reason = re.search(r"(?:CHECK failed: |invariant broken: )(.*)", output)
        return (
            f"fuzz: {int(events[1]) if events else 0:>8,} events, "
            f"{shrunk[1] if shrunk else '?':>3} left, {reason[1][:60] if reason else 'a crash'}"
        )


def main(build: Path) -> int:
    """Print the table; 1 if a mutant survives."""
    survivors = 0
    folder = Path(tempfile.mkdtemp(prefix="mutants"))
    try:
        bench = Bench(build.resolve(), folder)
        # The control: what the premise changes alone is no mistake.
        quiet, output = bench.run(
            "fuzz_scheduler", bench.compile("control", COLLISIONS), str(MAX_EVENTS // 4)
        )
        print(f"{'colliding hashes alone (the control)':<62} {'survive' if quiet else output}")
        survivors += not quiet
        for number, mutant in enumerate(MUTANTS):
            killer = bench.killer(f"m{number}", mutant)
            survivors += killer is None
            print(f"{mutant.meaning:<62} {killer or 'SURVIVES'}", flush=True)
    finally:
        shutil.rmtree(folder)
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
