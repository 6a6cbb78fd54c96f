#include "cli/eval/picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "fasa/error.h"

namespace fasa::cli {
namespace {

constexpr const char* kFont = "font-family=\"sans-serif\" font-size=\"11\"";
constexpr std::array kColours = {"#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b",
                                 "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#003f5c", "#58508d"};

std::string text_at(double x, double y, const std::string& anchor, const std::string& text,
                    const std::string& more = "") {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" text-anchor=\"{}\" {} {}>{}</text>\n", x, y, anchor, kFont, more,
                     escape_xml(text));
}

std::string header(double width, double height) {
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" width=\"{0:.0f}\" "
      "height=\"{1:.0f}\">\n"
      "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
      width, height);
}

// From dark blue over green to yellow, as viridis.
std::string colour_of(double value) {
  if (std::isnan(value)) return "#eeeeee";
  static constexpr std::array<std::array<double, 3>, 5> kStops = {
      {{68, 1, 84}, {59, 82, 139}, {33, 145, 140}, {94, 201, 98}, {253, 231, 37}}};
  const double at = std::clamp(value, 0.0, 1.0) * (kStops.size() - 1);
  const auto low = std::min<size_t>(static_cast<size_t>(at), kStops.size() - 2);
  std::array<int, 3> rgb{};
  for (size_t c = 0; c < 3; ++c) {
    rgb.at(c) = static_cast<int>(std::lround(
        kStops.at(low).at(c) + (at - static_cast<double>(low)) * (kStops.at(low + 1).at(c) - kStops.at(low).at(c))));
  }
  return fmt::format("#{:02x}{:02x}{:02x}", rgb[0], rgb[1], rgb[2]);
}

// An axis: from data to pixels, and where its ticks are.
struct Axis {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  bool log = false;
  double from = 0;
  double to = 0;

  double scaled(double value) const { return log ? std::log10(value) : value; }
  bool shows(double value) const { return std::isfinite(value) && (!log || value > 0); }
  void include(double value) {
    if (!shows(value)) return;
    low = std::min(low, scaled(value));
    high = std::max(high, scaled(value));
  }
  void finish() {
    if (low > high) low = 0, high = 1;
    if (!log) low = std::min(low, 0.0);
    if (high - low < 1e-9) high = low + 1;
    const double margin = 0.05 * (high - low);
    high += margin;
    if (log) low -= margin;
  }
  double pixel(double value) const { return from + (scaled(value) - low) / (high - low) * (to - from); }

  std::vector<double> ticks() const {
    std::vector<double> all;
    if (log) {
      for (auto power = static_cast<int>(std::floor(low)); power <= static_cast<int>(std::ceil(high)); ++power) {
        for (const double digit : {1.0, 2.0, 5.0}) {
          const double tick = digit * std::pow(10.0, power);
          if (std::log10(tick) >= low && std::log10(tick) <= high) all.push_back(tick);
        }
      }
      return all;
    }
    const double rough = (high - low) / 5;
    const double power = std::pow(10.0, std::floor(std::log10(rough)));
    const double step = rough / power < 2 ? 2 * power : rough / power < 5 ? 5 * power : 10 * power;
    for (double tick = std::ceil(low / step) * step; tick <= high; tick += step) all.push_back(tick);
    return all;
  }
};

std::string curve_svg(const Curve& curve, const Plot& plot, const Axis& x, const Axis& y, const std::string& colour) {
  std::string svg;
  std::string path;
  for (const Curve::Point& point : curve.points) {
    if (!x.shows(point.x) || !y.shows(point.y)) continue;
    const double px = x.pixel(point.x);
    const double py = y.pixel(point.y);
    path += fmt::format("{}{:.1f},{:.1f} ", path.empty() ? "M" : "L", px, py);
    svg += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"3\" fill=\"{}\"/>\n", px, py, colour);
    if (point.error > 0 && y.shows(point.y - point.error)) {
      svg += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"{3}\"/>\n", px,
                         y.pixel(point.y - point.error), y.pixel(point.y + point.error), colour);
    }
  }
  if (plot.lines && !path.empty()) {
    svg += fmt::format("<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"/>\n", path, colour);
  }
  return svg;
}

}  // namespace

std::string escape_xml(const std::string& text) {
  std::string safe;
  for (const char c : text) {
    switch (c) {
      case '&':
        safe += "&amp;";
        break;
      case '<':
        safe += "&lt;";
        break;
      case '>':
        safe += "&gt;";
        break;
      case '"':
        safe += "&quot;";
        break;
      default:
        safe += c;
    }
  }
  return safe;
}

Heatmap transposed(Heatmap map, size_t columns, size_t rows) {
  std::vector<double> values(map.values.size());
  for (size_t column = 0; column < columns; ++column) {
    for (size_t row = 0; row < rows; ++row) values.at(row * columns + column) = map.values.at(column * rows + row);
  }
  map.values = std::move(values);
  return map;
}

std::string svg_of(const Heatmap& map) {
  const size_t columns = map.x.size();
  const size_t rows = map.y.size();
  const double cell_width = std::clamp(560.0 / static_cast<double>(std::max<size_t>(1, columns)), 4.0, 70.0);
  const double cell_height = std::clamp(400.0 / static_cast<double>(std::max<size_t>(1, rows)), 2.0, 32.0);
  const double left = 90;
  const double top = 36;
  const double width = left + cell_width * static_cast<double>(columns) + 20;
  const double height = top + cell_height * static_cast<double>(rows) + 50;
  std::string svg =
      header(std::max(width, 320.0), height) + text_at(left, 20, "start", map.title, "font-weight=\"bold\"");
  for (size_t r = 0; r < rows; ++r) {
    for (size_t c = 0; c < columns; ++c) {
      const double value = map.values.at(r * columns + c);
      const double x = left + cell_width * static_cast<double>(c);
      const double y = top + cell_height * static_cast<double>(r);
      svg += fmt::format("<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.2f}\" height=\"{:.2f}\" fill=\"{}\"/>\n", x, y,
                         cell_width + 0.3, cell_height + 0.3, colour_of(value));
      if (!map.numbers || std::isnan(value)) continue;
      svg += text_at(x + cell_width / 2, y + cell_height / 2 + 4, "middle", fmt::format("{:.2f}", value),
                     value > 0.6 ? "fill=\"black\"" : "fill=\"white\"");
    }
  }
  const size_t every_row = std::max<size_t>(1, static_cast<size_t>(std::ceil(14 / cell_height)));
  for (size_t r = 0; r < rows; r += every_row) {
    svg += text_at(left - 6, top + cell_height * (static_cast<double>(r) + 0.5) + 4, "end", map.y[r]);
  }
  const size_t every_column = std::max<size_t>(1, static_cast<size_t>(std::ceil(40 / cell_width)));
  const double bottom = top + cell_height * static_cast<double>(rows);
  for (size_t c = 0; c < columns; c += every_column) {
    svg += text_at(left + cell_width * (static_cast<double>(c) + 0.5), bottom + 16, "middle", map.x[c]);
  }
  svg += text_at(left + cell_width * static_cast<double>(columns) / 2, bottom + 36, "middle", map.x_label);
  svg += text_at(14, top + cell_height * static_cast<double>(rows) / 2, "middle", map.y_label,
                 fmt::format("transform=\"rotate(-90 14 {:.1f})\"", top + cell_height * static_cast<double>(rows) / 2));
  return svg + "</svg>\n";
}

std::string svg_of(const Plot& plot) {
  constexpr double kWidth = 640;
  constexpr double kHeight = 380;
  constexpr double kRight = 460;  // the legend's place begins there
  Axis x{.log = plot.log_x, .from = 70, .to = kRight};
  Axis y{.log = plot.log_y, .from = kHeight - 50, .to = 36};
  for (const Curve& curve : plot.curves) {
    for (const Curve::Point& point : curve.points) {
      x.include(point.x);
      y.include(point.y);
    }
  }
  x.finish();
  y.finish();
  std::string svg = header(kWidth, kHeight) + text_at(70, 20, "start", plot.title, "font-weight=\"bold\"");
  for (const double tick : x.ticks()) {
    const double at = x.pixel(tick);
    svg += fmt::format("<line x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.1f}\" y2=\"{2:.1f}\" stroke=\"#dddddd\"/>\n", at,
                       y.from, y.to);
    svg += text_at(at, y.from + 16, "middle", fmt::format("{:g}", tick));
  }
  for (const double tick : y.ticks()) {
    const double at = y.pixel(tick);
    svg += fmt::format("<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#dddddd\"/>\n",
                       x.from, x.to, at);
    svg += text_at(x.from - 6, at + 4, "end", fmt::format("{:g}", tick));
  }
  double legend = 48;
  for (size_t i = 0; i < plot.curves.size(); ++i) {
    const std::string colour = kColours.at(i % kColours.size());
    svg += curve_svg(plot.curves[i], plot, x, y, colour);
    svg += fmt::format("<rect x=\"{}\" y=\"{:.1f}\" width=\"10\" height=\"10\" fill=\"{}\"/>\n", kRight + 14,
                       legend - 9, colour);
    svg += text_at(kRight + 30, legend, "start", plot.curves[i].name);
    legend += 17;
  }
  svg += text_at((x.from + x.to) / 2, kHeight - 12, "middle", plot.x_label);
  svg += text_at(16, (y.from + y.to) / 2, "middle", plot.y_label,
                 fmt::format("transform=\"rotate(-90 16 {:.1f})\"", (y.from + y.to) / 2));
  return svg + "</svg>\n";
}

std::string text_of(const Heatmap& map) {
  std::string text = fmt::format("{:>10}", map.x_label);
  for (const std::string& name : map.x) text += fmt::format(" {:>6}", name);
  text += "\n";
  for (size_t r = 0; r < map.y.size(); ++r) {
    text += fmt::format("{:>10}", map.y[r]);
    for (size_t c = 0; c < map.x.size(); ++c) {
      const double value = map.values.at(r * map.x.size() + c);
      text += std::isnan(value) ? "      -" : fmt::format(" {:>6.2f}", value);
    }
    text += "\n";
  }
  return text;
}

std::string picture_path(const std::string& path, const std::string& label) {
  std::string name = label;
  std::ranges::replace(name, ' ', '-');
  const std::filesystem::path given(path);
  return (given.parent_path() / (given.stem().string() + "-" + name + ".svg")).string();
}

void write_picture(const std::string& path, const std::string& svg) {
  std::ofstream file(path, std::ios::binary);
  file << svg;
  file.close();
  if (!file) throw Error(ErrorCode::kIo, fmt::format("{} cannot be written: name a file in a writable folder", path));
}

}  // namespace fasa::cli
