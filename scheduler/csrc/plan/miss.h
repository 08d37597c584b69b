// SPDX-License-Identifier: MIT
// Why prompt tokens were computed and not found: a report a request, told with its first token.
//
// What a prompt is compared with is the history of the same session under the same salt (of the
// same client, if it names no session). Another salt is looked at for one thing only: whether the
// prompt continues the session's whole history there. Who knows that text learns nothing; who does
// not is told nothing.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/result.h"
#include "kv/hash_chain.h"

namespace tokenspeed::plan {

// Invariant: cached + fresh + evicted + salted + diverged tokens are the prompt.
struct MissReport {
  RequestName name;
  int32_t host = 0;              // of the cached ones: loaded from the host tier
  int32_t fresh = 0;             // never seen here
  int32_t evicted = 0;           // seen, and evicted since
  int32_t salted = 0;            // the session has them under another salt
  int32_t diverged = 0;          // behind a token that differs from the session's history
  int32_t diverged_at = -1;      // that token; -1: none
  bool volatile_prefix = false;  // the session diverges early and goes on the same, again
  TimeNs queued = 0;             // from its arrival until it first had a slot
  StepId first_step;             // that could have a row of it
};

// What a request leaves to its session's next one: the hashes of its blocks, which they were, and
// the slot whose tables at the workers still begin with them if nobody had it since.
struct Trail {
  kv::HashChain chain;
  std::vector<kv::BlockMark> blocks;
  SlotId slot{-1};
  uint64_t rest = 0;  // by which the pool knows its table at rest; 0: none
};

// What a frontend knows of a prompt: it begins with tokens of an earlier one, which nobody needs to
// compare again. An id names one prompt for ever.
struct PromptOrigin {
  uint64_t id = 0;       // of this prompt; 0: no later one will name it
  uint64_t extends = 0;  // an earlier prompt's id; 0: none
  int32_t shared = 0;    // tokens that both begin with
};

// How many tokens a prompt begins with that are its session's history's: compared once.
struct PromptOverlap {
  size_t tokens = 0;
  uint64_t version = 0;  // of that history
};

// What sessions said last; bounded, the longest unused forgotten first.
class PromptHistory {
 public:
  static constexpr size_t kMostTokens = size_t{4} << 20;
  static constexpr size_t kMostEntries = 4096;

  explicit PromptHistory(size_t most_tokens = kMostTokens) : most_tokens_(most_tokens) {}

  // What `origin` says that the prompt shares with the history's is not compared.
  PromptOverlap Compare(ClientId client, std::string_view session, std::string_view salt,
                        std::span<const Token> prompt, const PromptOrigin& origin = {}) const;
  // Splits the tokens of `prompt` behind the first `cached`; `evicted` of them were seen to be.
  // `session` may be empty: then `client` stands for it.
  MissReport Explain(ClientId client, std::string_view session, std::string_view salt,
                     std::span<const Token> prompt, int cached, int evicted,
                     const PromptOverlap& common = {});
  // The session's history is `tokens` from now on, which begin with the prompt of this id, if it
  // has one; `trail`, if any, is theirs.
  void Remember(ClientId client, std::string_view session, std::string_view salt,
                std::vector<Token> tokens, std::optional<Trail> trail = std::nullopt,
                uint64_t prompt_id = 0);
  // The history's trail as far as it is the prompt's too; it is the caller's from now on.
  std::optional<Trail> TakeTrail(ClientId client, std::string_view session, std::string_view salt,
                                 std::span<const Token> prompt, int block_size,
                                 const PromptOverlap& common = {});
  // The blocks of all trails are gone.
  void ForgetBlocks();

  // What the session's last request under this salt ended with; empty if that is forgotten.
  // REQUIRES: `session` is not empty.
  std::span<const Token> Of(std::string_view session, std::string_view salt) const;

  Status Verify() const;
  // Writes down what decides the future.
  void Describe(std::ostream& out) const;

 private:
  struct Key {
    std::string name;
    std::string salt;
    friend auto operator<=>(const Key&, const Key&) = default;
  };
  struct Entry {
    Key key;
    std::vector<Token> tokens;
    std::optional<Trail> trail;
    uint64_t version = 0;    // tells these tokens from all that ever stand here
    uint64_t prompt_id = 0;  // 0: none
    int nonces = 0;          // requests that differed early and went on the same
  };
  using Place = std::list<Entry>::iterator;

  // What `common` says if it is of this entry, else anew.
  static size_t CommonOf(const Entry& entry, std::span<const Token> prompt,
                         const PromptOverlap& common);
  static std::string NameOf(ClientId client, std::string_view session);

  const size_t most_tokens_;
  size_t tokens_ = 0;  // of all entries
  uint64_t versions_ = 0;
  std::list<Entry> entries_;  // most recently used first
  std::map<Key, Place> index_;
};

}  // namespace tokenspeed::plan
