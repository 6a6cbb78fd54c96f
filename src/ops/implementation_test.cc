#include "src/ops/implementation.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <optional>

namespace fasa::ops {
namespace {

class ForcedImplementation : public testing::Test {
 protected:
  void SetUp() override {
    if (const char* value = std::getenv("FASA_IMPL")) before_ = value;
  }
  void TearDown() override {
    if (before_) {
      setenv("FASA_IMPL", before_->c_str(), 1);
    } else {
      unsetenv("FASA_IMPL");
    }
  }
  std::optional<std::string> before_;
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
  unsetenv("FASA_IMPL");
  EXPECT_EQ(forced_implementation("attend"), "");
  setenv("FASA_IMPL", "attend:ref,score:cpu", 1);
  EXPECT_EQ(forced_implementation("attend"), "ref");
  EXPECT_EQ(forced_implementation("score"), "cpu");
  EXPECT_EQ(forced_implementation("select"), "");
  EXPECT_EQ(forced_implementation("scor"), "");
  for (const char* broken : {"", ",", "attend", ":", "attend:", ",,:x,attend:"}) {
    setenv("FASA_IMPL", broken, 1);
    EXPECT_EQ(forced_implementation("attend"), "") << broken;
  }
}

TEST_F(ForcedImplementation, TheForcedOneRuns) {
  unsetenv("FASA_IMPL");
  EXPECT_STREQ(run({}), "fast");
  setenv("FASA_IMPL", "toy:ref", 1);
  EXPECT_STREQ(run({}), "ref");
  setenv("FASA_IMPL", "other:ref", 1);
  EXPECT_STREQ(run({}), "fast");
}

TEST_F(ForcedImplementation, FallsBackAndRefuses) {
  unsetenv("FASA_IMPL");
  EXPECT_STREQ(run({.odd = true}), "ref");
  setenv("FASA_IMPL", "toy:fast", 1);
  try {
    run({.odd = true});
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::kUnsupported);
    EXPECT_STREQ(error.what(), "toy: fast: even ones only");
  }
  setenv("FASA_IMPL", "toy:nope", 1);
  try {
    run({});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("nope"), std::string::npos);
  }
}

}  // namespace
}  // namespace fasa::ops
