#include "cli/eval/picture.h"

#include <gtest/gtest.h>

#include <cmath>

namespace fasa::cli {
namespace {

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Picture, HeatmapHasACellForEachValue) {
  Heatmap map{.title = "a < b",
              .x_label = "x",
              .y_label = "y",
              .x = {"1", "2", "3"},
              .y = {"p", "q"},
              .values = {0, 0.5, 1, NAN, 0.25, 2}};
  const std::string svg = svg_of(map);
  EXPECT_EQ(count(svg, "<rect"), 7U);  // the background and six cells
  EXPECT_NE(svg.find("a &lt; b"), std::string::npos);
  EXPECT_NE(svg.find("#440154"), std::string::npos);  // 0
  EXPECT_NE(svg.find("#fde725"), std::string::npos);  // 1 and above
  EXPECT_NE(svg.find("#eeeeee"), std::string::npos);  // nothing there
  EXPECT_EQ(count(svg, "<svg"), count(svg, "</svg>"));
  EXPECT_NE(text_of(map).find("0.50"), std::string::npos);
}

TEST(Picture, Transposes) {
  Heatmap map;
  map.values = {1, 2, 3, 4, 5, 6};  // 3 columns of 2 rows
  EXPECT_EQ(transposed(map, 3, 2).values, (std::vector<double>{1, 3, 5, 2, 4, 6}));
}

TEST(Picture, PlotLeavesOutWhatALogAxisCannotShow) {
  Plot plot{.title = "t",
            .x_label = "x",
            .y_label = "y",
            .log_x = true,
            .log_y = true,
            .lines = true,
            .curves = {{"one", {{64, 0.1, 0.01}, {256, 0.01, 0}, {512, 0, 0}}}, {"empty", {}}}};
  const std::string svg = svg_of(plot);
  EXPECT_EQ(count(svg, "<circle"), 2U);
  EXPECT_EQ(count(svg, "<path"), 1U);
  EXPECT_EQ(svg.find("nan"), std::string::npos);
  EXPECT_EQ(svg.find("inf"), std::string::npos);
}

TEST(Picture, PathOfALane) { EXPECT_EQ(picture_path("out/grid.svg", "fasa 256"), "out/grid-fasa-256.svg"); }

}  // namespace
}  // namespace fasa::cli
