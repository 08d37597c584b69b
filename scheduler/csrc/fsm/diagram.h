// SPDX-License-Identifier: MIT
// The diagram of a request's life: every arrow, once. The header proves, for all pairs of a state
// and an event, that transitions.h has exactly these; Diagram draws them.
#pragma once

#include <string>

#include "fsm/transitions.h"

namespace tokenspeed::fsm {

template <class... Types>
struct TypeList {};

template <class From, class Event, class To>
struct Arrow {};

using States = TypeList<Waiting, Prefilling, Decoding, Preempted, Ending, Finished>;
using Events = TypeList<Admit, PrefixFound, BlockGranted, ChunkPlanned, PromptPlanned, RowsPlanned,
                        RowsRetired, Preempt, Requeue, Finish, Settle>;
using Arrows = TypeList<                          //
    Arrow<Waiting, Admit, Prefilling>,            //
    Arrow<Waiting, Finish, Finished>,             //
    Arrow<Prefilling, PrefixFound, Prefilling>,   //
    Arrow<Prefilling, BlockGranted, Prefilling>,  //
    Arrow<Prefilling, ChunkPlanned, Prefilling>,  //
    Arrow<Prefilling, PromptPlanned, Decoding>,   //
    Arrow<Prefilling, Preempt, Preempted>,        //
    Arrow<Prefilling, Finish, Finished>,          //
    Arrow<Decoding, BlockGranted, Decoding>,      //
    Arrow<Decoding, RowsPlanned, Decoding>,       //
    Arrow<Decoding, RowsRetired, Decoding>,       //
    Arrow<Decoding, Preempt, Preempted>,          //
    Arrow<Decoding, Finish, Ending>,              //
    Arrow<Preempted, RowsRetired, Preempted>,     //
    Arrow<Preempted, Requeue, Waiting>,           //
    Arrow<Preempted, Finish, Ending>,             //
    Arrow<Ending, RowsRetired, Ending>,           //
    Arrow<Ending, Settle, Finished>>;

enum class DiagramFormat { kMermaid, kDot };
std::string Diagram(DiagramFormat format);

namespace proof {

template <class S, class E, class To>
constexpr bool Takes() {
  if constexpr (std::same_as<S, To>) {
    return Stays<S, E>;
  } else if constexpr (Moves<S, E>) {
    return std::same_as<decltype(On(std::declval<S&&>(), std::declval<E>())), To>;
  } else {
    return false;
  }
}

template <class... Froms, class... Es, class... Tos>
constexpr bool AllExist(TypeList<Arrow<Froms, Es, Tos>...>) {
  return (Takes<Froms, Es, Tos>() && ...);
}

template <class S, class E, class... Froms, class... Es, class... Tos>
constexpr int Drawn(TypeList<Arrow<Froms, Es, Tos>...>) {
  return ((std::same_as<S, Froms> && std::same_as<E, Es>)+...);
}

template <class S, class... Es>
constexpr bool NoOthersFrom(TypeList<Es...>) {
  return (((Moves<S, Es> || Stays<S, Es>) == (Drawn<S, Es>(Arrows{}) == 1)) && ...);
}

template <class... Ss>
constexpr bool NoOthers(TypeList<Ss...>) {
  return (NoOthersFrom<Ss>(Events{}) && ...);
}

template <class... Ss>
std::variant<Ss...> VariantOf(TypeList<Ss...>);

static_assert(AllExist(Arrows{}), "an arrow of the diagram has no function, or leads elsewhere");
static_assert(NoOthers(States{}), "a function On is no arrow of the diagram, or is drawn twice");
static_assert(std::same_as<decltype(VariantOf(States{})), State>, "a state is not in the diagram");

}  // namespace proof
}  // namespace tokenspeed::fsm
