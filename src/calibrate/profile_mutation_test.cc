// A deterministic fuzz of the parser that every run of the tests does; tests/fuzz has the libFuzzer
// target.
#include <gtest/gtest.h>

#include <random>
#include <string>

#include "fasa/error.h"
#include "src/calibrate/example_profile.h"

namespace fasa {
namespace {

class Mutator {
 public:
  explicit Mutator(std::string seed) : seed_(std::move(seed)) {}

  std::string next() {
    std::string text = seed_;
    for (size_t n = 1 + below(3); n > 0 && !text.empty(); --n) mutate(text);
    return text;
  }

 private:
  size_t below(size_t n) { return random_() % n; }

  void mutate(std::string& text) {
    static const char* const kTokens[] = {"null",
                                          "true",
                                          "-1",
                                          "0",
                                          "1e999",
                                          "1e-999",
                                          "18446744073709551615",
                                          "9999999999999",
                                          "NaN",
                                          "{}",
                                          "[]",
                                          "\"",
                                          "{",
                                          "}",
                                          "[",
                                          "]",
                                          ",",
                                          ":",
                                          "1.5",
                                          "\\",
                                          "\"version\": 2",
                                          "\xFF",
                                          "\"layers\""};
    const size_t at = below(text.size());
    const size_t length = std::min(text.size() - at, 1 + below(64));
    switch (below(6)) {
      case 0:
        text[at] = static_cast<char>(below(256));
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(below(text.size()), text.substr(at, length));
        break;
      case 3:
        text.insert(at, kTokens[below(std::size(kTokens))]);
        break;
      case 4: {  // a number becomes another token
        const size_t digit = text.find_first_of("0123456789", at);
        if (digit == std::string::npos) break;
        const size_t end = text.find_first_not_of("0123456789.", digit);
        text.replace(digit, end - digit, kTokens[below(std::size(kTokens))]);
        break;
      }
      default:
        text.resize(at);
    }
  }

  std::string seed_;
  std::mt19937 random_{20260203};
};

TEST(ProfileMutation, ParsesOrRefusesEveryMutatedFile) {
  Mutator mutator(profile_to_json(example_profile()));
  int accepted = 0;
  int refused = 0;
  for (int i = 0; i < 20000; ++i) {
    const std::string text = mutator.next();
    try {
      const Profile profile = parse_profile(text, "p");
      ++accepted;
      // What is accepted is usable and can be written again.
      ASSERT_EQ(profile_to_json(parse_profile(profile_to_json(profile), "p")), profile_to_json(profile));
      for (const LayerProfile& layer : profile.layers) {
        PolicySettings settings;
        if (layer.measures.empty()) continue;
        settings.criterion = layer.measures.begin()->first;
        dominant_dims(layer, settings);
      }
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), ErrorCode::kBadFormat) << e.what() << "\n" << text;
      ++refused;
    }
  }
  EXPECT_GT(accepted, 200);
  EXPECT_GT(refused, 5000);
}

}  // namespace
}  // namespace fasa
