# SPDX-License-Identifier: MIT
"""The scheduler core in a notebook's worth of code: no GPU, no model, no processes.

Submit three requests, two of them with one prompt, and print what every plan tells the workers.
The "model" answers each row with the number of the step.
"""

from tokenspeed_core.ipc.codec import Decoder, int32_column, read_column
from tokenspeed_core.ipc.messages import ROW_SAMPLES, FinishReason, StepPlan
from tokenspeed_core.scheduler._scheduler import Scheduler

CLIENT = 1
plans = Decoder(StepPlan)


def show(plan: StepPlan) -> None:
    rows = zip(read_column("i", plan.rows), read_column("i", plan.row_tokens), strict=True)
    text = ", ".join(f"slot {slot} runs {tokens} tokens" for slot, tokens in rows)
    again = f"the last step's first {plan.repeated_rows} rows again" if plan.repeated_rows else ""
    print(f"step {plan.step}: {', '.join(filter(None, (again, text)))}")
    added = zip(
        read_column("i", plan.added_slots), read_column("i", plan.added_context), strict=True
    )
    for slot, context in added:
        print(f"        slot {slot} is new; {context} of its tokens are in the cache")
    if plan.prefix_slots:
        slots = read_column("i", plan.prefix_slots).tolist()
        print(f"        slots {slots} share {read_column('i', plan.prefix_blocks)[0]} blocks")


def main() -> None:
    core = Scheduler(max_slots=4, max_step_tokens=16, max_model_len=64, vocab_size=100)
    core.begin_epoch(epoch=1, num_blocks=20, block_size=4)
    prompt = list(range(10, 23))
    for request, tokens in enumerate([prompt, prompt, [7, 8, 9]]):
        refused = core.submit(CLIENT, request, int32_column(tokens), max_tokens=3)
        assert refused is None, refused

    while (frame := core.plan()) is not None:
        plan = plans.decode(frame)
        show(plan)
        sampled = plan.repeated_rows + sum(bool(flags & ROW_SAMPLES) for flags in plan.row_flags)
        core.advance(plan.step, int32_column([plan.step] * sampled))
        for _, request, token, _, reason, cached in core.take_events():
            end = f", end: {FinishReason(reason).name}" if reason else ""
            print(f"    request {request} ({cached} cached) gets token {token}{end}")
        core.check()  # every invariant, the slow way
    print(core.stats())


if __name__ == "__main__":
    main()
