# SPDX-License-Identifier: MIT
"""vLLM's API server (0.32, V1) before an engine that computes nothing, for bench_host.py.

Runs in an interpreter that has vLLM, or its CPU build, which needs nothing of ours:
`python bench_host_vllm.py serve MODEL_DIRECTORY PORT INPUT OUTPUT` is the server, as vLLM starts it
where it has several.  `python bench_host_vllm.py engine INPUT OUTPUT MARKS` stands in for the
process of its scheduler: it gives every request a token a step until it has enough, as fast as it
can, and writes the time.monotonic_ns of each request's arrival, 8 bytes, to the file MARKS.
"""

import asyncio
import struct
import sys
import time

TOKEN = 504  # a word of SmolLM2's vocabulary


def serve(model: str, port: str, input_address: str, output_address: str) -> None:
    from vllm.entrypoints.launchers.api_server import entry
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    options = [f"--model={model}", "--served-model-name=m", f"--port={port}", "--host=127.0.0.1"]
    options += ["--disable-uvicorn-access-log", "--enable-prompt-tokens-details"]
    args = parser.parse_args(options)
    validate_parsed_serve_args(args)
    address, socket = setup_server(args, reuse_port=False)
    where = {"input_address": input_address, "output_address": output_address}
    asyncio.run(entry.run_server_worker(address, socket, args, client_config=where))


def engine(input_address: str, output_address: str, marks: str) -> None:
    import zmq
    from vllm.v1.engine import (
        EngineCoreOutput,
        EngineCoreOutputs,
        EngineCoreRequest,
        EngineCoreRequestType,
        FinishReason,
        UtilityOutput,
    )
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder, UtilityResult

    context = zmq.Context()
    source, sink = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
    source.setsockopt(zmq.IDENTITY, (0).to_bytes(2, "little"))
    source.connect(input_address)
    sink.connect(output_address)
    source.send(b"")  # ready
    requests, others, encoder = (
        MsgpackDecoder(EngineCoreRequest),
        MsgpackDecoder(),
        MsgpackEncoder(),
    )
    left: dict[str, int] = {}

    def send(outputs: EngineCoreOutputs) -> None:
        outputs.timestamp = time.monotonic()
        sink.send_multipart(encoder.encode(outputs))

    with open(marks, "wb", buffering=0) as file:
        while True:
            while source.poll(0 if left else None):
                kind, *frames = source.recv_multipart()
                if kind == EngineCoreRequestType.ADD.value:
                    request = requests.decode(frames)
                    file.write(struct.pack("<q", time.monotonic_ns()))
                    left[request.request_id] = request.sampling_params.max_tokens
                elif kind == EngineCoreRequestType.ABORT.value:
                    for each in others.decode(frames):
                        left.pop(each, None)
                elif kind == EngineCoreRequestType.UTILITY.value:
                    _, call, method, _ = others.decode(frames)
                    result = ("generate",) if method == "get_supported_tasks" else None
                    told = UtilityOutput(call, result=UtilityResult(result))
                    send(EngineCoreOutputs(utility_output=told))
                if left:
                    break
            step = []
            for name in list(left):
                left[name] -= 1
                reason = None if left[name] else FinishReason.LENGTH
                step.append(EngineCoreOutput(name, [TOKEN], finish_reason=reason))
                if reason is not None:
                    del left[name]
            if step:
                send(EngineCoreOutputs(outputs=step))


if __name__ == "__main__":
    {"serve": serve, "engine": engine}[sys.argv[1]](*sys.argv[2:])
