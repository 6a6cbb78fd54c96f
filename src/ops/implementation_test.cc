#include "src/ops/implementation.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

namespace fasa::ops {
namespace {

class ForcedImplementation : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* value = std::getenv("FASA_IMPL")) before_ = value;
  }
  void TearDown() override { force_implementations(before_); }
  std::string before_;
};

struct Args {
  bool odd = false;
  mutable const char* ran = "";
};

std::string even_only(const Args& args) { return args.odd ? "even ones only" : ""; }
std::string any(const Args& /*args*/) { return {}; }
constexpr Implementation<Args> kTable[] = {
    {"fast", even_only, [](Context&, const Args& args) { args.ran = "fast"; }},
    {"ref", any, [](Context&, const Args& args) { args.ran = "ref"; }},
};

const char* run(const Args& args) {
  Context context(make_serial_executor());
  choose<Args>("toy", kTable, args).run(context, args);
  return args.ran;
}

TEST_F(ForcedImplementation, ParsesTheList) {
  force_implementations("");
  EXPECT_EQ(forced_implementation("attend"), "");
  force_implementations("attend:ref,score:cpu");
  EXPECT_EQ(forced_implementation("attend"), "ref");
  EXPECT_EQ(forced_implementation("score"), "cpu");
  EXPECT_EQ(forced_implementation("select"), "");
  EXPECT_EQ(forced_implementation("scor"), "");
  for (const char* broken : {"", ",", "attend", ":", "attend:", ",,:x,attend:"}) {
    force_implementations(broken);
    EXPECT_EQ(forced_implementation("attend"), "") << broken;
  }
}

TEST_F(ForcedImplementation, TheForcedOneRuns) {
  force_implementations("");
  EXPECT_STREQ(run({}), "fast");
  force_implementations("toy:ref");
  EXPECT_STREQ(run({}), "ref");
  force_implementations("other:ref");
  EXPECT_STREQ(run({}), "fast");
}

TEST_F(ForcedImplementation, FallsBackAndRefuses) {
  force_implementations("");
  EXPECT_STREQ(run({.odd = true}), "ref");
  force_implementations("toy:fast");
  try {
    run({.odd = true});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(error.what(), "toy: fast: even ones only");
  }
  force_implementations("toy:nope");
  try {
    run({});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("nope"), std::string::npos);
  }
}

}  // namespace
}  // namespace fasa::ops
