#include "fasa/profile.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include "fasa/error.h"
#include "src/calibrate/example_profile.h"

namespace fasa {
namespace {

std::string message_of(const std::function<void()>& f, ErrorCode code) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), code) << e.what();
    return e.what();
  }
  return "no error";
}

class ProfileFile : public testing::Test {
 protected:
  ProfileFile()
      : dir_(std::filesystem::temp_directory_path() / ("fasa-profile-test-" + std::to_string(getpid()) + "-" +
                                                       testing::UnitTest::GetInstance()->current_test_info()->name())) {
    std::filesystem::create_directories(dir_);
  }
  ~ProfileFile() override { std::filesystem::remove_all(dir_); }
  std::string path(const std::string& name) const { return (dir_ / name).string(); }
  std::filesystem::path dir_;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Fingerprint, IsFnv1a64) {
  EXPECT_EQ(fingerprint("", 0), 0xcbf29ce484222325U);
  EXPECT_EQ(fingerprint("a", 1), 0xaf63dc4c8601ec8cU);
  EXPECT_EQ(fingerprint("foobar", 6), 0x85944171f73967e8U);
}

TEST(ProfileText, RoundTripKeepsEverythingAndIsStable) {
  const Profile profile = example_profile();
  const std::string text = profile_to_json(profile);
  const Profile back = parse_profile(text, "p");
  EXPECT_EQ(profile_to_json(back), text);
  EXPECT_EQ(back.version, kProfileVersion);
  EXPECT_EQ(back.architecture, profile.architecture);
  EXPECT_EQ(back.model_name, profile.model_name);
  EXPECT_EQ(back.provenance, profile.provenance);
  ASSERT_EQ(back.layers.size(), profile.layers.size());
  for (size_t i = 0; i < back.layers.size(); ++i) {
    const LayerProfile& a = profile.layers[i];
    const LayerProfile& b = back.layers[i];
    EXPECT_EQ(a.layer, b.layer);
    EXPECT_EQ(a.fingerprint, b.fingerprint);
    EXPECT_EQ(a.num_q_heads, b.num_q_heads);
    EXPECT_EQ(a.num_kv_heads, b.num_kv_heads);
    EXPECT_EQ(a.sliding_window, b.sliding_window);
    EXPECT_EQ(a.rope, b.rope);
    for (const auto& [mine, theirs] :
         {std::pair{&a.measures, &b.measures}, std::pair{&a.channels, &b.channels}, std::pair{&a.bases, &b.bases}}) {
      ASSERT_EQ(mine->size(), theirs->size());
      for (const auto& [name, values] : *mine) {
        ASSERT_EQ(values.size(), theirs->at(name).size());
        for (size_t j = 0; j < values.size(); ++j) {
          EXPECT_NEAR(values[j], theirs->at(name)[j], 5e-6F * std::fabs(values[j]));
        }
      }
    }
  }
}

RC_GTEST_PROP(ProfileText, SavingTwiceGivesTheSameBytes, (const std::vector<uint32_t>& seeds)) {
  Profile profile = example_profile();
  size_t n = 0;
  for (auto& layer : profile.layers) {
    for (auto& [name, values] : layer.measures) {
      for (float& v : values) {
        if (seeds.empty()) break;
        const uint32_t s = seeds[n++ % seeds.size()] * 2654435761U;
        v = std::ldexp(static_cast<float>(s), static_cast<int>(s % 200) - 130);
      }
    }
  }
  const std::string once = profile_to_json(profile);
  RC_ASSERT(profile_to_json(parse_profile(once, "p")) == once);
}

TEST_F(ProfileFile, SavesAndLoads) {
  const Profile profile = example_profile();
  save_profile(profile, path("p.json"));
  save_profile(profile, path("p.json"));
  EXPECT_EQ(profile_to_json(load_profile(path("p.json"))), profile_to_json(profile));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir_), {}), 1) << "a stray file";
}

TEST_F(ProfileFile, RefusesWhatIsNoReadableFile) {
  const auto load = [&](const std::string& name) { return [=] { load_profile(name); }; };
  EXPECT_EQ(message_of(load(path("none.json")), ErrorCode::kNotFound),
            path("none.json") + ": there is no such profile: make one with `fasa calibrate`.");
  EXPECT_NE(message_of(load(dir_.string()), ErrorCode::kIo).find("not a regular file"), std::string::npos);
  EXPECT_NE(
      message_of([&] { save_profile(example_profile(), path("no/such/dir/p")); }, ErrorCode::kIo).find("cannot write"),
      std::string::npos);
}

TEST_F(ProfileFile, RefusesAHugeFileBeforeReadingIt) {
  std::ofstream(path("huge.json")) << "{";
  std::filesystem::resize_file(path("huge.json"), uintmax_t{1} << 30);  // sparse
  const std::string message = message_of([&] { load_profile(path("huge.json")); }, ErrorCode::kBadFormat);
  EXPECT_NE(message.find("too large for a profile"), std::string::npos) << message;
}

struct Bad {
  const char* what;
  std::string text;
  const char* message;
};

TEST(ProfileText, RefusesEachBadFileInOneSentence) {
  const std::string good = profile_to_json(example_profile());
  const auto swap = [&](const std::string& from, const std::string& to) { return replaced(good, from, to); };
  const std::string head = "\"fingerprint\": \"fedcba9876543210\"";
  const std::vector<Bad> table = {
      {"empty", "", "it is empty"},
      {"blank", " \n", "it is empty"},
      {"truncated", good.substr(0, good.size() / 2), "it is truncated"},
      {"one byte short", good.substr(0, good.size() - 2), "it is truncated"},
      {"not JSON", "GGUF\x03", "it is not valid JSON at byte 1"},
      {"trailing garbage", good + "x", "it is not valid JSON at byte"},
      {"two documents", good + good, "it is not valid JSON at byte"},
      {"an array", "[]", "not a FASA profile"},
      {"other JSON", "{\"layers\": []}", "not a FASA profile"},
      {"other format", swap("fasa-profile", "x"), "not a FASA profile"},
      {"deep nesting", std::string(100000, '['), "nested too deep"},
      {"deep inside", swap("\"model_name\": ", "\"x\": [[[[[[[[[[]]]]]]]]]], \"model_name\": "), "nested too deep"},
      {"newer", swap("\"version\": 1", "\"version\": 2"),
       "the profile is of version 2, newer than 1 that this program reads"},
      {"newer, different", "{\"format\": \"fasa-profile\", \"version\": 7}", "is of version 7"},
      {"version 0", swap("\"version\": 1", "\"version\": 0"), "\"version\" is outside"},
      {"version text", swap("\"version\": 1", "\"version\": \"1\""), "\"version\" is not an integer"},
      {"version float", swap("\"version\": 1", "\"version\": 1.0"), "\"version\" is not an integer"},
      {"no layers", swap("\"layers\": [", "\"layerz\": ["), "\"layers\" is missing"},
      {"layers object",
       "{\"format\":\"fasa-profile\",\"version\":1,\"architecture\":\"\","
       "\"model_name\":\"\",\"provenance\":{},\"layers\":{}}",
       "\"layers\" is not an array"},
      {"zero layers",
       "{\"format\":\"fasa-profile\",\"version\":1,\"architecture\":\"\","
       "\"model_name\":\"\",\"provenance\":{},\"layers\":[]}",
       "it has no layers"},
      {"layer a number", swap("{\"layer\": 0", "7, {\"layer\": 0"), "layers[0] is not an object"},
      {"layer twice", swap("{\"layer\": 2", "{\"layer\": 1"), "layer 1 occurs twice"},
      {"layers out of order", swap("{\"layer\": 0", "{\"layer\": 9"), "comes after layer 9"},
      {"negative layer", swap("{\"layer\": 0", "{\"layer\": -1"), "\"layer\" of layers[0] is outside"},
      {"huge layer", swap("{\"layer\": 0", "{\"layer\": 99999999999"), "\"layer\" of layers[0] is outside"},
      {"layer 2^64-1", swap("{\"layer\": 0", "{\"layer\": 18446744073709551615"), "\"layer\" of layers[0] is outside"},
      {"layer text", swap("{\"layer\": 0", "{\"layer\": \"0\""), "\"layer\" of layers[0] is not an integer"},
      {"no fingerprint", swap(head, "\"x\": 0"), "\"fingerprint\" of layers[0] is missing"},
      {"short fingerprint", swap(head, "\"fingerprint\": \"abc\""), "16 hexadecimal digits"},
      {"bad fingerprint", swap(head, "\"fingerprint\": \"0xdcba9876543210\""), "16 hexadecimal digits"},
      {"zero heads", swap("\"num_q_heads\": 4", "\"num_q_heads\": 0"), "\"num_q_heads\" of layers[0] is outside"},
      {"heads that overflow", swap("\"num_q_heads\": 4", "\"num_q_heads\": 4294967300"),
       "\"num_q_heads\" of layers[0] is outside"},
      {"heads no multiple", swap("\"num_kv_heads\": 2", "\"num_kv_heads\": 3"), "3 KV heads"},
      {"head_dim that overflows", swap("\"head_dim\": 8", "\"head_dim\": 2147483648"),
       "\"head_dim\" of the rope of layers[0] is outside"},
      {"more rotary than head", swap("\"rotary_dim\": 6", "\"rotary_dim\": 10"), "layer 0 has a bad rope"},
      {"odd rotary", swap("\"rotary_dim\": 6", "\"rotary_dim\": 5"), "layer 0 has a bad rope"},
      {"layout", swap("\"interleaved\"", "\"both\""), "neither \"half\" nor \"interleaved\""},
      {"freq_base 0", swap("\"freq_base\": 10000.0", "\"freq_base\": 0"), "freq_base"},
      {"freq_base text", swap("\"freq_base\": 10000.0", "\"freq_base\": \"x\""), "is not a number"},
      {"sliding number", swap("\"sliding_window\": false", "\"sliding_window\": 0"), "is not true or false"},
      {"sliding with measures", swap("\"sliding_window\": false", "\"sliding_window\": true"),
       "though it is a sliding-window layer"},
      {"measured without measures", swap("\"sliding_window\": true", "\"sliding_window\": false"),
       "layer 1 has no measures"},
      {"other heads than values", swap("\"num_q_heads\": 4", "\"num_q_heads\": 2"),
       "is not an array of its 2 query heads"},
      {"other dims than values", swap("\"head_dim\": 8", "\"head_dim\": 16"),
       "16 values of 'ca256' where its heads and FCs make 32"},
      {"a missing measure", swap("\"ca256\"", "\"ca64\""), "lacks the measure"},
      {"measures array", swap("\"measures\": {}", "\"measures\": []"), "is not an object"},
      {"flat measure", swap("\"ca256\": [[", "\"ca256\": [1,["), "query heads"},
      {"uneven heads", swap("\"ca256\": [[0,", "\"ca256\": [["), "another length"},
      {"channels array", swap("\"channels\": {", "\"channels\": [], \"x\": {"), "is not an object"},
      {"one channel less", swap("\"abs_qk\": [[0,", "\"abs_qk\": [["), "another length"},
      {"negative channel", swap("\"abs_qk\": [[0,", "\"abs_qk\": [[-1,"), "negative or not finite"},
      {"no axes", swap("\"pca_post\": [[[", "\"pca_post\": [1, [["), "2 KV heads"},
      {"uneven axes", swap("\"pca_post\": [[[-0.272727,", "\"pca_post\": [[["), "axis of another length"},
      {"text in an axis", swap("\"pca_post\": [[[-0.272727,", "\"pca_post\": [[[\"a\","), "not a number"},
      {"NaN", swap("\"ca256\": [[0,", "\"ca256\": [[NaN,"), "it is not valid JSON at byte"},
      {"null", swap("\"ca256\": [[0,", "\"ca256\": [[null,"), "is not a number"},
      {"negative", swap("\"ca256\": [[0,", "\"ca256\": [[-1,"), "negative or not finite"},
      {"past float", swap("\"ca256\": [[0,", "\"ca256\": [[1e39,"), "out of range"},
      {"past double", swap("\"ca256\": [[0,", "\"ca256\": [[1e999,"), "out of range"},
      {"provenance", swap("\"windows\": \"4\"", "\"windows\": 4"), "\"windows\" of \"provenance\" is not a string"},
      {"bad UTF-8", swap("\xC3\xA9", "\xFF"), "it is not valid JSON at byte"},
      {"long name", swap("\"llama\"", "\"" + std::string(5000, 'a') + "\""), "is longer than"},
  };
  for (const Bad& bad : table) {
    const std::string message = message_of([&] { parse_profile(bad.text, "file.json"); }, ErrorCode::kBadFormat);
    EXPECT_NE(message.find(bad.message), std::string::npos) << bad.what << ": " << message;
    EXPECT_TRUE(message.starts_with("file.json: ")) << bad.what << ": " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    EXPECT_EQ(message.back(), '.') << message;
  }
}

TEST(ProfileText, RefusesToWriteAnInvalidProfile) {
  const auto write = [](auto change) {
    Profile profile = example_profile();
    change(profile);
    return message_of([&] { profile_to_json(profile); }, ErrorCode::kInvalidArgument);
  };
  EXPECT_NE(write([](Profile& p) { p.layers[0].measures["ca256"][3] = NAN; }).find("not finite"), std::string::npos);
  EXPECT_NE(write([](Profile& p) { p.layers[0].measures["ca256"].pop_back(); }).find("15 values"), std::string::npos);
  EXPECT_NE(write([](Profile& p) { p.layers.clear(); }).find("no layers"), std::string::npos);
  EXPECT_NE(write([](Profile& p) { p.layers[0].channels["abs_qk"].pop_back(); }).find("31 channel values"),
            std::string::npos);
  EXPECT_NE(write([](Profile& p) { p.layers[0].bases["pca_post"].resize(17); }).find("axes"), std::string::npos);
  EXPECT_NE(write([](Profile& p) { p.layers[0].bases["pca_post"][0] = NAN; }).find("not finite"), std::string::npos);
}

TEST(ProfileText, ReplacesNamesThatAreNotUtf8) {
  Profile profile = example_profile();
  profile.model_name = "a\xFF";
  EXPECT_EQ(parse_profile(profile_to_json(profile), "p").model_name, "a\xEF\xBF\xBD");
}

TEST(Profile, FindsLayers) {
  Profile profile = example_profile();
  profile.layers.erase(profile.layers.begin() + 1);
  EXPECT_EQ(profile.find(0), &profile.layers[0]);
  EXPECT_EQ(profile.find(1), nullptr);
  EXPECT_EQ(profile.find(2), &profile.layers[1]);
  EXPECT_EQ(profile.find(3), nullptr);
}

LayerProfile four_heads() {
  LayerProfile layer = example_profile().layers[0];
  // Head 0's FC 1 is by far its largest; head 1's values are large, but flat.
  layer.measures["energy"] = {1, 8, 0, 1, /**/ 40, 30, 50, 40, /**/ 0, 0, 0, 0, /**/ 1, 2, 2, 1};
  return layer;
}

TEST(DominantFcs, PerHeadBestFirstTiesByLowerFc) {
  PolicySettings settings;
  settings.share_fcs = false;
  settings.fc_count = 2;
  const std::vector<std::vector<int32_t>> want = {{1, 0}, {2, 0}, {0, 1}, {1, 2}};
  EXPECT_EQ(dominant_fcs(four_heads(), settings), want);
}

TEST(DominantFcs, SharedByTheMaxOfNormalisedMeasures) {
  PolicySettings settings;
  settings.fc_count = 2;
  // Heads 0, 1: max of (.1 .8 0 .1) and (.25 .19 .31 .25); the raw sum would put 2 first.
  // Heads 2, 3: a head of zeros says nothing.
  const std::vector<std::vector<int32_t>> want = {{1, 2}, {1, 2}};
  EXPECT_EQ(dominant_fcs(four_heads(), settings), want);
}

TEST(DominantFcs, DimsFollowTheLayout) {
  PolicySettings settings;
  settings.fc_count = 4;
  LayerProfile layer = four_heads();  // interleaved, rotary 6 of 8: FC 3 is the static pair (6, 7)
  const std::vector<int16_t> interleaved = {2, 3, 4, 5, 0, 1, 6, 7, 2, 3, 4, 5, 0, 1, 6, 7};
  EXPECT_EQ(dominant_dims(layer, settings), interleaved);
  layer.rope.layout = RopeLayout::kHalf;  // FC i is (i, i + 3)
  const std::vector<int16_t> half = {1, 4, 2, 5, 0, 3, 6, 7, 1, 4, 2, 5, 0, 3, 6, 7};
  EXPECT_EQ(dominant_dims(layer, settings), half);
}

TEST(DominantFcs, NamesTheCriteriaThereAre) {
  PolicySettings settings;
  settings.criterion = "beauty";
  EXPECT_EQ(message_of([&] { dominant_fcs(four_heads(), settings); }, ErrorCode::kInvalidArgument),
            "The profile has no criterion 'beauty' for layer 0: choose one of ca256, energy.");
}

// Three layers of 2 KV heads with one query head each and 4 FCs; `shares` are those of both heads.
Profile three_layers(const std::vector<std::vector<float>>& shares) {
  Profile profile;
  for (int32_t l = 0; l < 3; ++l) {
    LayerProfile layer;
    layer.layer = l;
    layer.num_q_heads = layer.num_kv_heads = 2;
    layer.rope = {RopeLayout::kHalf, 8, 8, 10000.0};
    for (const char* name : {"energy", "slope"}) {
      for (int head = 0; head < 2; ++head) {
        layer.measures[name].insert(layer.measures[name].end(), shares[l].begin(), shares[l].end());
      }
    }
    profile.layers.push_back(layer);
  }
  return profile;
}

TEST(LayerSettings, SharesOutNTipUnderTheSameTotal) {
  const Profile profile = three_layers({{1, 1, 1, 1}, {97, 1, 1, 1}, {50, 30, 10, 10}});
  PolicySettings settings;
  settings.dense_layers = 0;
  settings.fc_count = 2;
  EXPECT_EQ(layer_settings(profile, settings, 1).fc_count, 2);
  settings.n_tip_by_layer = true;
  // Gains of a further FC: .25 .25 .25 | .01 ... | .3 .1 .1, and 3 to give.
  EXPECT_EQ(layer_settings(profile, settings, 0).fc_count, 3);
  EXPECT_EQ(layer_settings(profile, settings, 1).fc_count, 1);
  EXPECT_EQ(layer_settings(profile, settings, 2).fc_count, 2);
  settings.dense_list = {0};
  EXPECT_EQ(layer_settings(profile, settings, 0).fc_count, 2) << "a dense layer takes no part";
  EXPECT_EQ(layer_settings(profile, settings, 1).fc_count, 1);
  EXPECT_EQ(layer_settings(profile, settings, 2).fc_count, 3);
  settings.fc_count = 4;
  EXPECT_EQ(layer_settings(profile, settings, 2).fc_count, 4) << "never more than there are";
}

TEST(LayerSettings, BudgetFallsAlongTheSparseLayers) {
  const Profile profile = three_layers({{1, 1, 1, 1}, {1, 1, 1, 1}, {1, 1, 1, 1}});
  PolicySettings settings;
  settings.dense_layers = 0;
  settings.budget = 100;
  EXPECT_EQ(layer_settings(profile, settings, 0).budget, 130) << "what FASA does where nothing is said";
  settings.budget_slope = 0.5;
  EXPECT_EQ(layer_settings(profile, settings, 0).budget, 150);
  EXPECT_EQ(layer_settings(profile, settings, 2).full_rows, 100);
  EXPECT_EQ(layer_settings(profile, settings, 1).budget, 100);
  EXPECT_EQ(layer_settings(profile, settings, 2).budget, 50);
  settings.budget_slope = 1;
  EXPECT_EQ(layer_settings(profile, settings, 2).budget, 37) << "sinks, recent and one more";
  settings.budget_slope = 0;
  EXPECT_EQ(layer_settings(profile, settings, 0).budget, 100);
  settings.budget_slope.reset();
  settings.kind = PolicyKind::kOracle;
  EXPECT_EQ(layer_settings(profile, settings, 0).budget, 100) << "the others have one budget for all layers";
}

TEST(FcWeights, AreTheMeansOfTheChosenFcs) {
  Profile profile = three_layers({{1, 8, 2, 4}, {1, 1, 1, 1}, {1, 1, 1, 1}});
  LayerProfile& layer = profile.layers[0];
  layer.num_kv_heads = 1;
  layer.measures["slope"] = {0, 1, 2, 3, 4, 5, 6, 7};
  PolicySettings settings;
  settings.fc_count = 2;
  EXPECT_TRUE(fc_weights(layer, settings).empty());
  settings.weights = "slope";
  EXPECT_EQ(fc_weights(layer, settings), (std::vector<float>{3, 5}));  // FCs 1 and 3 of heads 0 and 1
  settings.weights = "none";
  EXPECT_THROW(fc_weights(layer, settings), Error);
}

}  // namespace
}  // namespace fasa
