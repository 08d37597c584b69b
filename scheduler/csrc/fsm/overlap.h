// SPDX-License-Identifier: MIT
// The rows of one request that are planned and whose results are not known: each is planned, in
// flight, retired, in the order of the plans. A row brings 1 to `width` tokens; how many is known
// when its step retires, so the request's length is a range until then.
#pragma once

#include "base/check.h"

namespace tokenspeed::fsm {

class Overlap {
 public:
  int rows() const { return rows_; }
  bool empty() const { return rows_ == 0; }
  // Tokens that the rows bring at least, and at most.
  int fewest() const { return rows_; }
  int most() const { return most_; }

  // REQUIRES: rows >= 0, width >= 1
  void Planned(int rows, int width) {
    rows_ += rows;
    most_ += rows * width;
  }
  // REQUIRES: the oldest `rows` rows are of this width.
  void Retired(int rows, int width) {
    TS_CHECK(rows >= 0 && rows <= rows_ && rows * width <= most_,
             rows << " rows of width " << width << " retired, " << rows_ << " of " << most_
                  << " tokens were in flight");
    rows_ -= rows;
    most_ -= rows * width;
  }

 private:
  int rows_ = 0;
  int most_ = 0;
};

}  // namespace tokenspeed::fsm
