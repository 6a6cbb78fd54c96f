// The profile's file format: docs/profile.md.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "fasa/error.h"
#include "fasa/profile.h"
#include "src/calibrate/profile_check.h"

namespace fasa {
namespace {

using Json = nlohmann::json;

constexpr const char* kFormatName = "fasa-profile";
constexpr int kMaxDepth = 8;         // the format needs 7
constexpr size_t kMaxText = 4096;    // of a name or a provenance value
constexpr size_t kMaxMeasures = 64;  // of a layer
constexpr size_t kMaxProvenance = 256;

// Reads one profile; every failure is one sentence that starts with the file's name.
class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  Profile read(std::string_view text) const {
    if (text.find_first_not_of(" \t\r\n") == std::string_view::npos) fail("it is empty");
    const Json root = parse(text);
    if (!root.is_object() || root.value("format", Json()) != kFormatName) {
      fail("it is JSON, but not a FASA profile (it lacks \"format\": \"fasa-profile\")");
    }
    Profile profile;
    // Before anything else: a newer version may differ in all of the rest.
    profile.version = static_cast<int>(integer(root, "version", "", 1, 1 << 30));
    if (profile.version > kProfileVersion) {
      throw Error(ErrorCode::kBadFormat,
                  fmt::format("{}: the profile is of version {}, newer than {} that this program reads: "
                              "update fasa, or run `fasa calibrate` again.",
                              name_, profile.version, kProfileVersion));
    }
    profile.architecture = text_field(root, "architecture", "");
    profile.model_name = text_field(root, "model_name", "");
    read_provenance(root, profile);
    const Json& layers = field(root, "layers", "");
    if (!layers.is_array()) fail("\"layers\" is not an array");
    if (layers.size() > kMaxLayers) fail(fmt::format("it has more than {} layers", kMaxLayers));
    for (size_t i = 0; i < layers.size(); ++i) {
      profile.layers.push_back(read_layer(layers[i], fmt::format("layers[{}]", i)));
    }
    if (const std::string problem = profile_problem(profile); !problem.empty()) fail(problem);
    return profile;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorCode::kBadFormat,
                fmt::format("{}: {}: make the profile again with `fasa calibrate`.", name_, what));
  }

  Json parse(std::string_view text) const {
    try {
      return Json::parse(text, [&](int depth, Json::parse_event_t, Json&) {
        if (depth > kMaxDepth) fail("it is nested too deep to be a profile");
        return true;
      });
    } catch (const Json::parse_error& e) {
      if (e.byte > text.size()) fail("it is truncated (the JSON ends in the middle)");
      fail(fmt::format("it is not valid JSON at byte {}", e.byte));
    } catch (const Json::exception&) {
      fail("it has a number that is out of range");
    }
  }

  const Json& field(const Json& object, const char* key, const std::string& where) const {
    const auto at = object.find(key);
    if (at == object.end()) fail(fmt::format("{} is missing", path(where, key)));
    return *at;
  }

  static std::string path(const std::string& where, const char* key) {
    return where.empty() ? fmt::format("\"{}\"", key) : fmt::format("\"{}\" of {}", key, where);
  }

  int64_t integer(const Json& object, const char* key, const std::string& where, int64_t low, int64_t high) const {
    const Json& value = field(object, key, where);
    if (!value.is_number_integer()) fail(fmt::format("{} is not an integer", path(where, key)));
    const bool too_big = value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(high);
    if (too_big || value.get<int64_t>() < low || value.get<int64_t>() > high) {
      fail(fmt::format("{} is outside {}..{}", path(where, key), low, high));
    }
    return value.get<int64_t>();
  }

  std::string text_field(const Json& object, const char* key, const std::string& where) const {
    const Json& value = field(object, key, where);
    if (!value.is_string()) fail(fmt::format("{} is not a string", path(where, key)));
    const auto& text = value.get_ref<const std::string&>();
    if (text.size() > kMaxText) {
      fail(fmt::format("{} is longer than {} bytes", path(where, key), kMaxText));
    }
    return text;
  }

  void read_provenance(const Json& root, Profile& profile) const {
    const Json& provenance = field(root, "provenance", "");
    if (!provenance.is_object()) fail("\"provenance\" is not an object");
    if (provenance.size() > kMaxProvenance) fail("\"provenance\" has too many entries");
    for (const auto& [key, value] : provenance.items()) {
      profile.provenance[key] = text_field(provenance, key.c_str(), "\"provenance\"");
    }
  }

  LayerProfile read_layer(const Json& json, const std::string& where) const {
    if (!json.is_object()) fail(where + " is not an object");
    LayerProfile layer;
    layer.layer = static_cast<int32_t>(integer(json, "layer", where, 0, kMaxLayers - 1));
    layer.fingerprint = read_fingerprint(json, where);
    layer.num_q_heads = static_cast<int32_t>(integer(json, "num_q_heads", where, 1, kMaxHeads));
    layer.num_kv_heads = static_cast<int32_t>(integer(json, "num_kv_heads", where, 1, kMaxHeads));
    const Json& sliding = field(json, "sliding_window", where);
    if (!sliding.is_boolean()) fail(path(where, "sliding_window") + " is not true or false");
    layer.sliding_window = sliding.get<bool>();
    layer.rope = read_rope(json, where);
    read_measures(json, where, layer);
    return layer;
  }

  uint64_t read_fingerprint(const Json& json, const std::string& where) const {
    const std::string text = text_field(json, "fingerprint", where);
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
    if (text.size() != 16 || error != std::errc() || end != text.data() + text.size()) {
      fail(path(where, "fingerprint") + " is not 16 hexadecimal digits");
    }
    return value;
  }

  RopeSpec read_rope(const Json& json, const std::string& where) const {
    const Json& rope = field(json, "rope", where);
    if (!rope.is_object()) fail(path(where, "rope") + " is not an object");
    const std::string in = "the rope of " + where;
    RopeSpec spec;
    const std::string layout = text_field(rope, "layout", in);
    if (layout != "half" && layout != "interleaved") {
      fail(path(in, "layout") + " is neither \"half\" nor \"interleaved\"");
    }
    spec.layout = layout == "half" ? RopeLayout::kHalf : RopeLayout::kInterleaved;
    spec.head_dim = static_cast<int32_t>(integer(rope, "head_dim", in, 2, 4096));
    spec.rotary_dim = static_cast<int32_t>(integer(rope, "rotary_dim", in, 2, 4096));
    const Json& base = field(rope, "freq_base", in);
    if (!base.is_number()) fail(path(in, "freq_base") + " is not a number");
    spec.freq_base = base.get<double>();
    return spec;
  }

  void read_measures(const Json& json, const std::string& where, LayerProfile& layer) const {
    const auto heads = static_cast<size_t>(layer.num_q_heads);
    read_tables(field(json, "measures", where), path(where, "measures"), heads, "query head", layer.measures);
    if (const auto at = json.find("channels"); at != json.end()) {
      read_tables(*at, path(where, "channels"), heads, "query head", layer.channels);
    }
    const auto at = json.find("bases");
    if (at == json.end()) return;
    const std::string in = path(where, "bases");
    if (!at->is_object()) fail(in + " is not an object");
    if (at->size() > kMaxMeasures) fail(in + " has too many entries");
    for (const auto& [name, kv_heads] : at->items()) {
      check_name(name, in);
      const std::string of = path(in, name.c_str());
      if (!kv_heads.is_array() || kv_heads.size() != static_cast<size_t>(layer.num_kv_heads)) {
        fail(fmt::format("{} is not an array of its {} KV heads", of, layer.num_kv_heads));
      }
      for (const Json& axes : kv_heads) {
        if (!axes.is_array() || axes.empty()) fail(of + " has a KV head that is not an array of axes");
        if (axes.size() != kv_heads.front().size()) fail(of + " has KV heads with unequal numbers of axes");
        read_rows(axes, of, "axis", kv_heads.front().front().size(), layer.bases[name]);
      }
    }
  }

  // name -> an array of `heads` arrays of numbers, all of one length.
  void read_tables(const Json& tables, const std::string& where, size_t heads, const char* what,
                   std::map<std::string, std::vector<float>>& to) const {
    if (!tables.is_object()) fail(where + " is not an object");
    if (tables.size() > kMaxMeasures) fail(where + " has too many entries");
    for (const auto& [name, rows] : tables.items()) {
      check_name(name, where);
      const std::string in = path(where, name.c_str());
      if (!rows.is_array() || rows.size() != heads) {
        fail(fmt::format("{} is not an array of its {} {}s", in, heads, what));
      }
      // Their sum is checked against the layer later; too short and too long must not make up for each other.
      read_rows(rows, in, what, rows.front().size(), to[name]);
    }
  }

  void check_name(const std::string& name, const std::string& where) const {
    if (name.empty() || name.size() > 64) fail(fmt::format("{} has a name that is empty or too long", where));
  }

  void read_rows(const Json& rows, const std::string& in, const char* what, size_t length,
                 std::vector<float>& values) const {
    for (const Json& row : rows) {
      if (!row.is_array()) fail(fmt::format("{} has a {} that is not an array", in, what));
      if (row.size() != length) fail(fmt::format("{} has a {} of another length", in, what));
      for (const Json& number : row) {
        if (!number.is_number()) fail(in + " has a value that is not a number");
        const double value = number.get<double>();
        if (!(std::fabs(value) <= std::numeric_limits<float>::max())) fail(in + " has a number that is out of range");
        values.push_back(static_cast<float>(value));
      }
    }
  }

  const std::string& name_;
};

std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace); }

// The rows form `num_groups` arrays; 0: there is no such level.
void append_table(const std::string& key, const std::map<std::string, std::vector<float>>& tables, size_t row_length,
                  size_t num_groups, std::string& out) {
  out += fmt::format("\"{}\": {{", key);
  bool first = true;
  for (const auto& [name, values] : tables) {
    const size_t per_group = num_groups == 0 ? 0 : values.size() / num_groups;
    out += fmt::format("{}\n      {}: [{}", first ? "" : ",", quoted(name), per_group == 0 ? "" : "[");
    first = false;
    for (size_t i = 0; i < values.size(); ++i) {
      if (i == 0) {
        out += "[";
      } else if (per_group != 0 && i % per_group == 0) {
        out += "]],\n        [[";
      } else if (i % row_length == 0) {
        out += "],\n        [";
      }
      // 6 digits survive a round trip through float, so that saving again gives the same bytes.
      out += fmt::format("{}{:.6g}", i % row_length == 0 ? "" : ",", values[i] + 0.0F);  // no -0: JSON has one zero
    }
    out += per_group == 0 ? "]]" : "]]]";
  }
  out += "}";
}

void append_measures(const LayerProfile& layer, std::string& out) {
  const auto head_dim = static_cast<size_t>(layer.rope.head_dim);
  append_table("measures", layer.measures, static_cast<size_t>(num_fcs(layer.rope)), 0, out);
  if (!layer.channels.empty()) {
    out += ",\n    ";
    append_table("channels", layer.channels, head_dim, 0, out);
  }
  if (!layer.bases.empty()) {
    out += ",\n    ";
    append_table("bases", layer.bases, head_dim, static_cast<size_t>(layer.num_kv_heads), out);
  }
}

// Why a system call on `path` failed.
[[noreturn]] void fail_io(const std::string& path, const char* doing, int error) {
  throw Error(ErrorCode::kIo, fmt::format("{}: cannot {} the profile: {}: check the path and its "
                                          "permissions, or choose another.",
                                          path, doing, std::strerror(error)));
}

class NewFile {
 public:
  explicit NewFile(std::string target)
      : target_(std::move(target)), path_(fmt::format("{}.tmp-{}", target_, getpid())) {
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd_ < 0) fail_io(target_, "write", errno);
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  ~NewFile() {
    if (fd_ >= 0) close(fd_);
    if (!done_) unlink(path_.c_str());
  }
  void write_all(std::string_view text) const {
    while (!text.empty()) {
      const ssize_t n = write(fd_, text.data(), text.size());
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail_io(target_, "write", errno);
      text.remove_prefix(static_cast<size_t>(n));
    }
  }
  void commit() {
    if (fsync(fd_) != 0) fail_io(target_, "write", errno);
    if (rename(path_.c_str(), target_.c_str()) != 0) fail_io(target_, "write", errno);
    done_ = true;
  }

 private:
  std::string target_;
  std::string path_;
  int fd_ = -1;
  bool done_ = false;
};

}  // namespace

Profile parse_profile(std::string_view json, const std::string& name_for_errors) {
  if (static_cast<int64_t>(json.size()) > kMaxProfileBytes) {
    throw Error(ErrorCode::kBadFormat,
                fmt::format("{}: {} bytes is too large for a profile (at most {}): is it another "
                            "file?",
                            name_for_errors, json.size(), kMaxProfileBytes));
  }
  return Reader(name_for_errors).read(json);
}

Profile load_profile(const std::string& path) {
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  if (!std::filesystem::exists(status)) {
    throw Error(ErrorCode::kNotFound,
                fmt::format("{}: there is no such profile: make one with `fasa calibrate`.", path));
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw Error(ErrorCode::kIo, fmt::format("{}: this is not a regular file: name a profile, as `fasa calibrate` "
                                            "writes it.",
                                            path));
  }
  const auto size = std::filesystem::file_size(path, error);
  if (error) fail_io(path, "read", error.value());
  if (size > static_cast<uintmax_t>(kMaxProfileBytes)) {
    throw Error(ErrorCode::kBadFormat,
                fmt::format("{}: {} bytes is too large for a profile (at most {}): is it another "
                            "file?",
                            path, size, kMaxProfileBytes));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) fail_io(path, "read", errno);
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (file.bad()) fail_io(path, "read", errno);
  text.resize(static_cast<size_t>(file.gcount()));
  return parse_profile(text, path);
}

std::string profile_to_json(const Profile& profile) {
  if (const std::string problem = profile_problem(profile); !problem.empty()) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("The profile cannot be written: {}.", problem));
  }
  std::string out =
      fmt::format("{{\n\"format\": \"{}\",\n\"version\": {},\n\"architecture\": {},\n\"model_name\": {},\n",
                  kFormatName, profile.version, quoted(profile.architecture), quoted(profile.model_name));
  out += "\"provenance\": {";
  for (bool first = true; const auto& [key, value] : profile.provenance) {
    out += fmt::format("{}\n  {}: {}", first ? "" : ",", quoted(key), quoted(value));
    first = false;
  }
  out += "},\n\"layers\": [";
  for (bool first = true; const LayerProfile& layer : profile.layers) {
    out += fmt::format(
        "{}\n  {{\"layer\": {}, \"fingerprint\": \"{:016x}\", \"num_q_heads\": {}, "
        "\"num_kv_heads\": {}, \"sliding_window\": {},\n    \"rope\": {{\"layout\": \"{}\", "
        "\"head_dim\": {}, \"rotary_dim\": {}, \"freq_base\": {}}},\n    ",
        first ? "" : ",", layer.layer, layer.fingerprint, layer.num_q_heads, layer.num_kv_heads, layer.sliding_window,
        layer.rope.layout == RopeLayout::kHalf ? "half" : "interleaved", layer.rope.head_dim, layer.rope.rotary_dim,
        Json(layer.rope.freq_base).dump());
    append_measures(layer, out);
    out += "}";
    first = false;
  }
  out += "]\n}\n";
  return out;
}

void save_profile(const Profile& profile, const std::string& path) {
  const std::string text = profile_to_json(profile);
  NewFile file(path);
  file.write_all(text);
  file.commit();
}

}  // namespace fasa
