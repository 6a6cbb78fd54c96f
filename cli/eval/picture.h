// Pictures as SVG text: heatmaps and curves, for files and for the report.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace fasa::cli {

struct Heatmap {
  std::string title;
  std::string x_label;
  std::string y_label;
  std::vector<std::string> x;  // names of the columns; few of them are drawn where there are many
  std::vector<std::string> y;
  std::vector<double> values;  // [y][x], in [0, 1]; NaN: nothing there
  bool numbers = true;         // write the values into the cells
};

// values as [columns][rows] -> [rows][columns].
Heatmap transposed(Heatmap map, size_t columns, size_t rows);

struct Curve {
  std::string name;
  struct Point {
    double x;
    double y;
    double error;  // half of the bar
  };
  std::vector<Point> points;
};

struct Plot {
  std::string title;
  std::string x_label;
  std::string y_label;
  bool log_x = false;
  bool log_y = false;
  bool lines = true;  // between the points of a curve
  std::vector<Curve> curves;
};

std::string svg_of(const Heatmap& map);
std::string svg_of(const Plot& plot);
// For the terminal: one line a row.
std::string text_of(const Heatmap& map);

std::string escape_xml(const std::string& text);

// picture.svg, "fasa 256" -> picture-fasa-256.svg
std::string picture_path(const std::string& path, const std::string& label);
// Throws Error(kIo).
void write_picture(const std::string& path, const std::string& svg);

}  // namespace fasa::cli
