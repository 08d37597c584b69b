// SPDX-License-Identifier: MIT
// Traces and the cache replay as part of the Python module.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "simulate/cache_replay.h"

namespace py = pybind11;

namespace tokenspeed {

void BindSimulation(py::module_& m);

void BindSimulation(py::module_& m) {
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
