// SPDX-License-Identifier: MIT
// What a step costs on one replica: a roofline of four plain numbers a phase. Who builds it
// (tokenspeed_core/simulation/device_model.py) says where they come from.
#pragma once

#include <algorithm>
#include <cmath>

namespace tokenspeed::simulate {

// Of one rank; all ranks do the same at the same time.
struct Device {
  double step_s = 0;          // launches, sampling, collectives' latency: every step has it
  double token_s = 0;         // on the wire between ranks, a token
  double weight_bytes = 0;    // read by every step
  double expert_bytes = 0;    // of all experts together
  double expert_share = 0;    // of the experts that one token is sent to
  double kv_token_bytes = 0;  // of one token of context
  double bandwidth = 1;       // bytes/s
  double kv_bandwidth = 1;    // of attention, which reads by blocks
  double token_flops = 0;     // of products with weights, a token
  double sample_flops = 0;    // of the output projection, a sampled row
  double product_rate = 1;    // FLOP/s
  double pair_flops = 0;      // of attention, a pair of a token and one before it
  double attention_rate = 1;  // FLOP/s
  double link_bandwidth = 1;  // bytes/s to the host, and as many back
};

// What a step computes.
struct StepShape {
  double tokens = 0;
  double sampled = 0;       // rows
  double context_read = 0;  // tokens of KV; a prefix that rows share counts once
  double pairs = 0;         // token-context pairs
};

// Products with weights, then attention, each bound by what it reads or by what it computes.
inline double StepSeconds(const Device& device, const StepShape& step) {
  const double touched = 1 - std::pow(1 - device.expert_share, step.tokens);
  const double weights = device.weight_bytes + device.expert_bytes * touched;
  const double products = device.token_flops * step.tokens + device.sample_flops * step.sampled;
  return device.step_s + device.token_s * step.tokens +
         std::max(weights / device.bandwidth, products / device.product_rate) +
         std::max(step.context_read * device.kv_token_bytes / device.kv_bandwidth,
                  step.pairs * device.pair_flops / device.attention_rate);
}

}  // namespace tokenspeed::simulate
