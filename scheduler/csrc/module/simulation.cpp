// SPDX-License-Identifier: MIT
// Traces, the cache replay and the simulator as part of the Python module.
#include "simulate/simulation.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "simulate/cache_replay.h"

namespace py = pybind11;

namespace tokenspeed {
namespace {

void BindDevice(py::module_& m) {
  using simulate::Device;
  py::class_<Device>(m, "Device")
      .def(py::init([](double step_s, double token_s, double weight_bytes, double expert_bytes,
                       double expert_share, double kv_token_bytes, double bandwidth,
                       double kv_bandwidth, double token_flops, double sample_flops,
                       double product_rate, double pair_flops, double attention_rate,
                       double link_bandwidth) {
             const double rates[] = {bandwidth, kv_bandwidth, product_rate, attention_rate,
                                     link_bandwidth};
             const double costs[] = {step_s,         token_s,         weight_bytes, expert_bytes,
                                     kv_token_bytes, token_flops,     sample_flops, pair_flops,
                                     expert_share,   1 - expert_share};
             if (!std::ranges::all_of(rates, [](double rate) { return rate > 0; }) ||
                 !std::ranges::all_of(costs, [](double cost) { return cost >= 0; })) {
               throw py::value_error("a device has a rate of 0 or a negative cost");
             }
             return Device{step_s,         token_s,    weight_bytes,   expert_bytes,  expert_share,
                           kv_token_bytes, bandwidth,  kv_bandwidth,   token_flops,   sample_flops,
                           product_rate,   pair_flops, attention_rate, link_bandwidth};
           }),
           py::kw_only(), py::arg("step_s"), py::arg("token_s"), py::arg("weight_bytes"),
           py::arg("expert_bytes"), py::arg("expert_share"), py::arg("kv_token_bytes"),
           py::arg("bandwidth"), py::arg("kv_bandwidth"), py::arg("token_flops"),
           py::arg("sample_flops"), py::arg("product_rate"), py::arg("pair_flops"),
           py::arg("attention_rate"), py::arg("link_bandwidth"))
      .def(
          "step_seconds",
          [](const Device& device, double tokens, double sampled, double context_read,
             double pairs) {
            return simulate::StepSeconds(device, {tokens, sampled, context_read, pairs});
          },
          py::kw_only(), py::arg("tokens"), py::arg("sampled"), py::arg("context_read"),
          py::arg("pairs"));
}

py::dict TotalsOf(const simulate::Outcome& outcome) {
  const plan::Counters& counters = outcome.counters;
  py::dict totals;
  totals["end_ns"] = outcome.end;
  totals["busy_ns"] = outcome.busy;
  totals["loading_ns"] = outcome.loading;
  totals["storing_ns"] = outcome.storing;
  totals["rows"] = outcome.rows;
  totals["steps"] = counters.steps;
  totals["preemptions"] = counters.preemptions;
  totals["recomputed_tokens"] = counters.recomputed_tokens;
  totals["stored_blocks"] = counters.stored_blocks;
  totals["loaded_blocks"] = counters.loaded_blocks;
  totals["failed_transfers"] = counters.failed_transfers;
  totals["missed_new"] = counters.missed_new;
  totals["missed_evicted"] = counters.missed_evicted;
  totals["missed_salted"] = counters.missed_salted;
  totals["missed_diverged"] = counters.missed_diverged;
  return totals;
}

void BindSimulate(py::module_& m) {
  using simulate::Served;
  m.def(
      "simulate",
      [](const simulate::Trace& trace, const simulate::Device& device, int pool_blocks,
         int block_size, int host_blocks, int max_running, int max_step_tokens,
         int max_prefill_tokens, double decode_stretch, const std::string& eviction, int depth,
         int64_t transfer_ms, int sessions, double rate, uint64_t seed, int64_t requests,
         double longest_pause_s, bool names, bool hints) {
        auto by_reuse = plan::EvictsByReuse(eviction);
        if (!by_reuse.ok()) throw py::value_error(by_reuse.error().message);
        if (trace.conversations.empty() || pool_blocks < 1 || pool_blocks > INT32_MAX - 8 ||
            block_size < 1 || host_blocks < 0 || sessions < 1 || rate < 0 || requests < 0 ||
            longest_pause_s < 0) {
          throw py::value_error("give a trace, one block of one token and one session at least");
        }
        simulate::Setting setting;
        setting.limits.max_slots = max_running;
        setting.limits.max_step_tokens = max_step_tokens;
        setting.limits.max_prefill_tokens = max_prefill_tokens;
        setting.limits.max_model_len = INT32_MAX - 1;
        setting.limits.max_waiting = INT32_MAX;
        setting.limits.vocab_size = 1 << 20;
        setting.limits.depth = depth;
        setting.limits.evict_by_reuse = by_reuse.value();
        setting.limits.transfer_ms = transfer_ms;
        setting.limits.decode_stretch = decode_stretch;
        if (const Status valid = setting.limits.Validate(); !valid.ok()) {
          throw py::value_error(valid.error().message);
        }
        setting.shape.num_blocks = pool_blocks + 1;
        setting.shape.block_size = block_size;
        setting.shape.host_blocks = host_blocks;
        setting.sessions = sessions;
        setting.rate = rate;
        setting.seed = seed;
        setting.requests = requests;
        setting.longest_pause = longest_pause_s;
        setting.names = names;
        setting.hints = hints;
        setting.device = device;
        simulate::Outcome outcome;
        {
          const py::gil_scoped_release released;
          outcome = simulate::Simulate(trace, setting);
        }
        // Not when the module is imported: that would import numpy.
        static const bool registered = [] {
          PYBIND11_NUMPY_DTYPE(Served, conversation, row, prompt, cached, host, ideal, evicted,
                               output, refused, arrived, admitted, first, last);
          return true;
        }();
        static_cast<void>(registered);
        py::array_t<Served> requests_array(static_cast<py::ssize_t>(outcome.requests.size()),
                                           outcome.requests.data());
        std::vector<int64_t> gaps;
        for (const double q : {0.5, 0.9, 0.99, 1.0}) gaps.push_back(outcome.gaps.Quantile(q));
        return std::tuple(std::move(requests_array), TotalsOf(outcome), gaps);
      },
      py::arg("trace"), py::arg("device"), py::kw_only(), py::arg("pool_blocks"),
      py::arg("block_size"), py::arg("host_blocks"), py::arg("max_running"),
      py::arg("max_step_tokens"), py::arg("max_prefill_tokens"), py::arg("decode_stretch"),
      py::arg("eviction"), py::arg("depth"), py::arg("transfer_ms"), py::arg("sessions"),
      py::arg("rate"), py::arg("seed"), py::arg("requests"), py::arg("longest_pause_s"),
      py::arg("names"), py::arg("hints"));
}

}  // namespace

void BindSimulation(py::module_& m);

void BindSimulation(py::module_& m) {
  BindDevice(m);
  BindSimulate(m);
  using simulate::CacheSetting;
  using simulate::Trace;
  using Row = std::tuple<int32_t, int32_t, int32_t, int32_t, double, double, int>;
  py::class_<Trace>(m, "Trace")
      .def(py::init([](int block_tokens) {
             if (block_tokens < 1) throw py::value_error("block_tokens must be at least 1");
             return std::make_unique<Trace>(Trace{block_tokens, {}});
           }),
           py::arg("block_tokens"))
      .def(
          "add",
          [](Trace& trace, uint64_t tool_key, uint64_t system_key, int tool_blocks,
             int shared_blocks, const std::vector<Row>& rows) {
            simulate::Conversation conversation{
                tool_key, system_key, tool_blocks, shared_blocks, {}};
            for (const auto& [input, output, kept, blocks, service, pause, stop] : rows) {
              if (input < 0 || output < 0 || kept < 0 || blocks < 0 || service < 0 || pause < 0 ||
                  stop < 0 || stop > 2) {
                throw py::value_error("a row of a trace has a negative value or an unknown stop");
              }
              conversation.rows.push_back(
                  {input, output, kept, blocks, service, pause, static_cast<uint8_t>(stop)});
            }
            if (!conversation.rows.empty()) trace.conversations.push_back(std::move(conversation));
          },
          py::kw_only(), py::arg("tool_key"), py::arg("system_key"), py::arg("tool_blocks"),
          py::arg("shared_blocks"), py::arg("rows"));
  m.def(
      "replay_cache",
      [](const Trace& trace, int sessions, int64_t pool_blocks, double longest_pause_s,
         const std::string& policy, bool names, bool hints) {
        CacheSetting setting{.sessions = sessions,
                             .pool_blocks = pool_blocks,
                             .longest_pause = longest_pause_s,
                             .names = names,
                             .hints = hints};
        if (policy == "lru") {
          setting.policy = CacheSetting::Policy::kLru;
        } else if (policy == "oracle") {
          setting.policy = CacheSetting::Policy::kOracle;
        } else if (policy != "reuse") {
          throw py::value_error("policy is " + policy + "; give reuse, lru or oracle");
        }
        if (sessions < 1 || pool_blocks < 1 || pool_blocks > INT32_MAX - 8 || longest_pause_s < 0) {
          throw py::value_error(
              "give at least one session and one block, and a pause of 0 or more");
        }
        const py::gil_scoped_release released;
        const simulate::CacheScore score = simulate::ReplayCache(trace, setting);
        return std::tuple(score.requests, score.prompt_tokens, score.hit_tokens, score.ideal_tokens,
                          score.output_tokens, score.long_recomputes);
      },
      py::arg("trace"), py::kw_only(), py::arg("sessions"), py::arg("pool_blocks"),
      py::arg("longest_pause_s"), py::arg("policy"), py::arg("names") = true,
      py::arg("hints") = true);
}

}  // namespace tokenspeed
