#include "cli/text_windows.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

class TextWindows : public testing::Test {
 protected:
  TextWindows()
      : dir_(std::filesystem::temp_directory_path() / ("fasa-text-windows-test-" + std::to_string(getpid()))) {
    std::filesystem::create_directories(dir_);
  }
  ~TextWindows() override { std::filesystem::remove_all(dir_); }
  std::string file(const std::string& name, const std::string& text) const {
    std::ofstream(dir_ / name, std::ios::binary) << text;
    return (dir_ / name).string();
  }
  // Lines "00000\n", "00001\n", ...: a token each.
  static std::string lines(int first, int count) {
    std::string text;
    for (int i = first; i < first + count; ++i) {
      std::string number = std::to_string(i);
      text += std::string(5 - number.size(), '0') + number + "\n";
    }
    return text;
  }
  static std::vector<int32_t> tokenize(const std::string& text) {
    std::vector<int32_t> tokens;
    for (size_t i = 0; i + 6 <= text.size(); i += 6) tokens.push_back(std::stoi(text.substr(i, 5)));
    return tokens;
  }
  std::filesystem::path dir_;
};

TEST_F(TextWindows, SpreadEvenlyOverAllFiles) {
  const TextFiles texts({file("a", lines(0, 600)), file("b", lines(600, 600))});
  const auto windows = choose_windows(texts, 4, 100, tokenize);
  ASSERT_EQ(windows.size(), 4U);
  for (int w = 0; w < 4; ++w) {
    ASSERT_EQ(windows[w].size(), 100U);
    EXPECT_GE(windows[w].front(), 300 * w);
    EXPECT_LT(windows[w].back(), 300 * (w + 1));
    for (int i = 0; i < 100; ++i) ASSERT_EQ(windows[w][i], windows[w][0] + i) << "a torn window";
  }
  EXPECT_EQ(choose_windows(texts, 4, 100, tokenize), windows);
}

TEST_F(TextWindows, AsManyAsFitUnlessTold) {
  const TextFiles texts({file("a", lines(0, 250))});
  EXPECT_EQ(choose_windows(texts, 0, 100, tokenize).size(), 2U);
  EXPECT_EQ(choose_windows(texts, 2, 100, tokenize).size(), 2U);
  EXPECT_EQ(choose_windows(texts, 0, 250, tokenize).front().back(), 249);
  EXPECT_THROW(choose_windows(texts, 3, 100, tokenize), Error);
}

TEST_F(TextWindows, SaysHowManyTokensThereAreAndHowManyItNeeds) {
  const TextFiles texts({file("a", lines(0, 99))});
  try {
    choose_windows(texts, 0, 512, tokenize);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    EXPECT_STREQ(e.what(),
                 "the text is too short: it has 99 tokens and 1 window of 512 needs 512: give more "
                 "text, or a smaller --context");
  }
}

TEST_F(TextWindows, ReadsOnlyWhatItNeeds) {
  const std::string path = file("huge", lines(0, 1000));
  std::filesystem::resize_file(path, uintmax_t{20} << 30);  // sparse
  size_t most = 0;
  choose_windows(TextFiles({path}), 2, 100, [&](const std::string& text) {
    most = std::max(most, text.size());
    return std::vector<int32_t>(text.size() / 6);
  });
  EXPECT_LT(most, 10000U);
}

TEST_F(TextWindows, CutsAtWholeCharacters) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "\xE2\x82\xAC";  // the euro sign, three bytes
  const TextFiles texts({file("euro", text)});
  for (int begin = 0; begin < 10; ++begin) {
    for (int count = 0; count < 10; ++count) {
      const std::string part = texts.read(begin, count);
      EXPECT_EQ(part.size() % 3, 0U);
      EXPECT_EQ(part, text.substr(0, part.size()));
    }
  }
}

TEST_F(TextWindows, RefusesWhatIsNoFile) {
  EXPECT_THROW(TextFiles({(dir_ / "none").string()}), Error);
  EXPECT_THROW(TextFiles({dir_.string()}), Error);
  EXPECT_THROW(choose_windows(TextFiles({file("empty", "")}), 0, 512, tokenize), Error);
}

}  // namespace
}  // namespace fasa::cli
