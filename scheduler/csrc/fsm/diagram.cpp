// SPDX-License-Identifier: MIT
#include "fsm/diagram.h"

#include <vector>

namespace tokenspeed::fsm {
namespace {

struct Drawing {
  const char* from;
  const char* event;
  const char* to;
};

template <class... Froms, class... Es, class... Tos>
std::vector<Drawing> Draw(TypeList<Arrow<Froms, Es, Tos>...>) {
  return {Drawing{Froms::kName, Es::kName, Tos::kName}...};
}

}  // namespace

std::string Diagram(DiagramFormat format) {
  const bool dot = format == DiagramFormat::kDot;
  const std::string first =
      dot ? "  start -> Waiting [label=\"Submit\"]\n" : "    [*] --> Waiting: Submit\n";
  std::string text = dot ? "digraph request {\n  start [shape=point]\n" : "stateDiagram-v2\n";
  text += first;
  for (const Drawing& arrow : Draw(Arrows{})) {
    const std::string from = arrow.from, event = arrow.event, to = arrow.to;
    text += dot ? "  " + from + " -> " + to + " [label=\"" + event + "\"]\n"
                : "    " + from + " --> " + to + ": " + event + "\n";
  }
  return text + (dot ? "}\n" : "    Finished --> [*]\n");
}

}  // namespace tokenspeed::fsm
