// docs/policies.md says of each policy what the code says.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "fasa/policy.h"

namespace fasa {
namespace {

std::string row_of_document(const PolicyInfo& info) {
  const char* alias = info.kind == PolicyKind::kZeroMerge ? " (or `zsmerge`)" : "";
  const auto yes = [](bool is) { return is ? "yes" : "no"; };
  return fmt::format("| `{}`{} | {} | {} | {} | {} | {} |", info.name, alias, info.paper, info.memory, info.reads,
                     yes(info.drops_tokens), yes(info.observes_prefill));
}

TEST(PolicyTable, DocumentHasTheSameRows) {
  std::ifstream file(FASA_SOURCE_DIR "/docs/policies.md");
  ASSERT_TRUE(file) << "docs/policies.md cannot be read";
  std::vector<std::string> rows;
  bool inside = false;
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("| name | paper |")) {
      inside = true;
      std::getline(file, line);
      EXPECT_TRUE(line.starts_with("|---"));
    } else if (inside && line.starts_with("|")) {
      rows.push_back(line);
    } else {
      inside = false;
    }
  }
  std::vector<std::string> expected;
  for (const PolicyInfo& info : policy_infos()) expected.push_back(row_of_document(info));
  EXPECT_EQ(rows, expected);
}

TEST(PolicyTable, IsInTheOrderOfItsKindsAndFoundByName) {
  for (size_t i = 0; i < policy_infos().size(); ++i) {
    const PolicyInfo& info = policy_infos()[i];
    EXPECT_EQ(static_cast<size_t>(info.kind), i);
    EXPECT_EQ(parse_policy(info.name), info.kind);
  }
}

}  // namespace
}  // namespace fasa
