#include "cli/eval/tables.h"

#include <gtest/gtest.h>

namespace fasa::cli {
namespace {

Json kl_row(const std::string& policy, int64_t budget, const std::string& n_tip, const std::string& text, double kl,
            double se) {
  Json row = {{"policy", policy}, {"budget", budget}};
  if (!n_tip.empty()) row["n_tip"] = n_tip;
  row.update({{"measure", "kl"},
              {"context", 4096},
              {"model", "m.gguf"},
              {"text", text},
              {"kl_mean", kl},
              {"kl_se", se},
              {"top1_agreement", 0.9},
              {"ppl", 11.0},
              {"ppl_full", 10.0},
              {"kv_bytes_read_per_token", 2048},
              {"index_bytes_read_per_token", 1024},
              {"decode_tps", 50.0}});
  return row;
}

TEST(Tables, VariantsAreNamedByWhatDiffers) {
  const std::vector<Json> rows = {kl_row("fasa", 256, "8", "a", 1, 0), kl_row("fasa", 512, "25%", "a", 1, 0),
                                  kl_row("oracle", 256, "", "a", 1, 0)};
  EXPECT_EQ(variant_names(rows), (std::vector<std::string>{"fasa n_tip=8", "fasa n_tip=25%", "oracle"}));
}

TEST(Tables, KlIsTheMeanOverTextsWithItsError) {
  const std::vector<Section> sections =
      sections_of({kl_row("fasa", 256, "8", "a", 0.01, 0.003), kl_row("fasa", 256, "8", "b", 0.03, 0.004)});
  ASSERT_EQ(sections.size(), 1U);
  const Table& table = sections[0].table;
  ASSERT_EQ(table.rows.size(), 1U);
  // The error of a mean of two: sqrt(.003^2 + .004^2) / 2.
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"m.gguf", "4096", "fasa", "256", "2", "0.0200 ± 0.0025", "90.0",
                                                     "1.1000", "3", "50.0"}));
  EXPECT_EQ(sections[0].pictures.size(), 3U);
}

TEST(Tables, NeedleGrid) {
  std::vector<Json> rows;
  for (const int length : {1024, 4096}) {
    for (const int depth : {0, 100}) {
      rows.push_back({{"policy", "full"},
                      {"budget", 0},
                      {"measure", "needle"},
                      {"kind", "passkey"},
                      {"context", length},
                      {"depth", depth},
                      {"trials", 4},
                      {"found", 3},
                      {"score_mean", 0.75},
                      {"model", "m"}});
    }
  }
  const std::vector<Section> sections = sections_of(rows);
  ASSERT_EQ(sections.size(), 1U);
  EXPECT_EQ(sections[0].table.rows[0], (std::vector<std::string>{"m", "passkey", "full", "12", "16"}));
  ASSERT_EQ(sections[0].pictures.size(), 1U);
  EXPECT_NE(sections[0].pictures[0].find("0.75"), std::string::npos);
}

TEST(Tables, TextAndHtml) {
  const Table table{{"a", "long name"}, {{"±1", "x"}, {"<b>", "y"}}};
  EXPECT_EQ(text_of(table), "a    long name\n±1   x\n<b>  y\n");
  EXPECT_NE(html_of(table).find("<td>&lt;b&gt;</td>"), std::string::npos);
}

}  // namespace
}  // namespace fasa::cli
